"""The registry of samplers: one file a method, one entry a name. A new sampler is its file and its line here."""

from collections.abc import Mapping

from server.samplers.base import Sampler
from server.samplers.ddim import DDIM
from server.samplers.ddpm import DDPM
from server.samplers.dpm_2 import DPM_2, DPM_2_ANCESTRAL, DPM_2_ANCESTRAL_KARRAS, DPM_2_KARRAS
from server.samplers.dpm_solver_multistep import (
    DPM_PLUS_PLUS_2M_KARRAS,
    DPM_PLUS_PLUS_2M_SDE,
    DPM_PLUS_PLUS_2M_SDE_KARRAS,
    DPM_SOLVER_MULTISTEP,
)
from server.samplers.dpm_solver_sde import DPM_PLUS_PLUS_SDE_KARRAS
from server.samplers.dpm_solver_singlestep import DPM_SINGLE
from server.samplers.euler import K_EULER
from server.samplers.euler_ancestral import K_EULER_ANCESTRAL
from server.samplers.heun import HEUN, K_HEUN
from server.samplers.lcm import LCM
from server.samplers.lms import KLMS, LMS
from server.samplers.pndm import PNDM
from server.samplers.uni_pc import UNI_PC

# The first is the default of a request; the others are in the order of the API.
SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        DDIM,
        PNDM,
        LMS,
        KLMS,
        DDPM,
        HEUN,
        K_HEUN,
        K_EULER,
        K_EULER_ANCESTRAL,
        DPM_SOLVER_MULTISTEP,
        DPM_PLUS_PLUS_2M_KARRAS,
        DPM_PLUS_PLUS_2M_SDE,
        DPM_PLUS_PLUS_2M_SDE_KARRAS,
        DPM_SINGLE,
        DPM_2,
        DPM_2_KARRAS,
        DPM_2_ANCESTRAL,
        DPM_2_ANCESTRAL_KARRAS,
        DPM_PLUS_PLUS_SDE_KARRAS,
        UNI_PC,
        LCM,
    )
}
