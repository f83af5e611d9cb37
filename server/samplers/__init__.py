"""The registry of samplers: one file a method, one entry a name. A new sampler is its file and its line here."""

from collections.abc import Mapping

from server.samplers.base import Sampler
from server.samplers.ddim import DDIM
from server.samplers.dpm_solver_multistep import DPM_PLUS_PLUS_2M_KARRAS
from server.samplers.euler import K_EULER
from server.samplers.euler_ancestral import K_EULER_ANCESTRAL

SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler for sampler in (DDIM, K_EULER, K_EULER_ANCESTRAL, DPM_PLUS_PLUS_2M_KARRAS)
}
