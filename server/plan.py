"""What a request comes to: everything that decides its pictures, as plain data.

`Plan` is frozen and total: nothing in it is optional, nothing is left to look up or to default. `request.py` makes it;
everything after that reads it. Knows nothing of messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from server.adapters.control import Control, NoControl
from server.adapters.ip_adapter import ImagePrompt, NoImagePrompt
from server.adapters.names import AdapterNames
from server.adapters.transfer import Marked, Transfer, text_only
from server.adapters.weights import Part, Variant, components, variants
from server.canvas import FromNoise, FromPicture, Inpainting
from server.catalog import Engine
from server.engines.port import Array, Spec
from server.families.base import Size, Text
from server.pictures import Encoding
from server.samplers.base import Sampler, Step, Trajectory
from server.tokenizer import Prompt

UNGUIDED = 1.0  # guidance scales up to here take no negative half


@dataclass(frozen=True)
class Plan:
    """Everything that decides a request's pictures."""

    engine: Engine
    prompt: str
    prompt_2: str  # a copy of `prompt` where the request has none
    negated: bool  # whether the request has a negative prompt, be it empty: SDXL tells none from an empty one
    negative_prompt: str
    negative_prompt_2: str  # a copy of `negative_prompt` where the request has none
    style_preset: str  # name of the style whose words those texts have; empty: none
    prompts: Mapping[Text, Prompt]  # of each text that the engine reads; all have as many chunks
    negative_prompts: Mapping[Text, Prompt]
    marked: Mapping[Text, Marked]  # those prompts with a token for each transfer image; empty without such
    clip_skip: int  # layers of the text encoders that are left out for the prompt; 0: none
    guidance_scale: float
    size: Size
    seeds: tuple[int, ...]  # one a picture
    start: FromNoise | FromPicture | Inpainting
    strength: float  # how far to depart from the picture to start from; 1 from noise
    outpainting: bool  # how `start` was made: for what a reply and a file tell
    inpaint_full_res: bool
    inpaint_full_res_padding: int  # pixels
    sampler: Sampler
    steps: int  # of a run from noise
    high_noise_frac: float  # share of the timesteps before the refiner's; 1 where none takes part
    encoding: Encoding
    parts: tuple[Part, ...]  # weights over the engine's own
    vectors: Mapping[str, Array]  # by text engine: k width, float32, what token ids below 0 stand for; empty without
    control: Control | NoControl
    image_prompt: ImagePrompt | NoImagePrompt
    transfers: tuple[Transfer, ...]
    adapters: AdapterNames  # for what a reply and a file tell
    notices: tuple[str, ...]  # what was cut on the way, in sentences

    @property
    def guided(self) -> bool:
        """Whether the negative half takes part: at 1 it cancels out, below diffusers leaves it out as well."""
        return self.guidance_scale > UNGUIDED

    @property
    def needs_picture(self) -> bool:
        """Whether the latents of the given picture take part in the denoising. As in diffusers an inpainting network
        at full strength is only told the masked picture's; a refiner is not told."""
        match self.start:
            case FromNoise():
                return False
            case FromPicture():
                return True
            case Inpainting():
                return self.draws_picture_first or len(self.refiner_steps) > 0

    @property
    def draws_picture_first(self) -> bool:
        """Whether the picture's latents are drawn before the start noise, as diffusers does where it needs them: not
        where it is the refiner alone that does."""
        return self.strength < 1 or not self.engine.card.inpainting

    @property
    def keeps_picture(self) -> bool:
        """Whether the denoising begins with the picture under noise: inpainting at full strength begins with noise."""
        return self.needs_picture and (self.strength < 1 or isinstance(self.start, FromPicture))

    @property
    def encodings(self) -> int:
        """Executions of the autoencoder's encoder."""
        return int(self.needs_picture) + int(self.engine.card.inpainting)

    @cached_property
    def trajectory(self) -> Trajectory:
        """The steps of a run from noise."""
        return self.sampler.trajectory(self.engine.schedule, self.steps)

    @cached_property
    def walked(self) -> tuple[Step, ...]:
        """The steps of a picture's denoising, of which image to image leaves the first ones out; one at least."""
        first = 0
        if not isinstance(self.start, FromNoise):
            first = self.engine.family.first_step(self.steps, self.strength)
        return self.trajectory.steps[first:]

    @property
    def base_steps(self) -> tuple[Step, ...]:
        """Those before the refiner's."""
        return self.walked[: self._cut]

    @property
    def refiner_steps(self) -> tuple[Step, ...]:
        """Those at the end that are the refiner's; none where it takes no part."""
        return self.walked[self._cut :]

    @cached_property
    def _cut(self) -> int:
        """How many steps lie in the base's share of the timesteps: diffusers' `denoising_end` and `denoising_start`."""
        timesteps = self.engine.card.scheduler.num_train_timesteps
        cutoff = round(timesteps - self.high_noise_frac * timesteps)
        return sum(step.here.time >= cutoff for step in self.walked)

    @cached_property
    def evaluations(self) -> int:
        """Of the denoising networks together, for one picture."""
        return self.sampler.evaluations(self.base_steps) + self.sampler.evaluations(self.refiner_steps)

    @cached_property
    def executions(self) -> Mapping[str, int]:
        """Of each network by its name in the model repository, for all pictures, in the order of their first use."""
        engine = self.engine
        counts = engine.family.executions(self, engine.card)
        return {**counts, **{spec.name: len(self.seeds) for spec in engine.safety.specs}}

    @cached_property
    def variants(self) -> Mapping[str, Variant]:
        """What runs in place of the repository's networks, by their name."""
        return variants(self.engine.card.name, self._ran, self.parts)

    @property
    def _networks(self) -> tuple[Spec, ...]:
        """Those that weights are put over."""
        return *self.engine.specs, *self.engine.templates

    @property
    def _ran(self) -> tuple[Spec, ...]:
        return tuple(spec for spec in self._networks if spec.name in self.executions)

    @property
    def idle_parts(self) -> tuple[Part, ...]:
        """Weights of networks that do not run: of a UNet for whose evaluations a refiner or an early stop leaves no
        room."""
        used = {part for variant in self.variants.values() for part in variant.parts}
        return tuple(part for part in self.parts if part not in used)

    def idle_components(self, part: Part) -> frozenset[str]:
        """Those of the engine that a part changes and no network that runs has."""
        name = self.engine.card.name
        return part.components & components(name, self._networks) - components(name, self._ran)

    @property
    def shows_transfers(self) -> bool:
        """Whether any evaluation is told of transfer images: the first ones and a refiner's are not."""
        first = text_only(self.sampler.evaluations(self.walked))
        return len(self.transfers) > 0 and self.sampler.evaluations(self.base_steps) > first

    def rows(self, text: Text) -> tuple[Prompt, ...]:
        """Of a text: (negative, positive) where guidance is on, else (positive,)."""
        positive = self.prompts[text]
        return (self.negative_prompts[text], positive) if self.guided else (positive,)
