"""Trains the transfer encoder: PhotoMaker v1's, from the image encoder, and the LoRA that goes with it.

The subject is a thing in a colour that its prompt does not say: pictures of it say so. Its noun stands in the text once
for every picture, and each of these places gets one picture fused in; the pooled text is that of the prompt as written.
UNet, text encoders and the vision half stay as they are. Knows the network of SDXL; from which step on the pictures
count is decided elsewhere.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from demo.captions import NAMES, caption
from demo.scenes import KINDS, TIMES, Scene, Thing, sample
from demo.tokenizer import LENGTH, encode
from demo.training import sdxl
from demo.training.alike import sky
from demo.training.attention import mixed
from demo.training.diffusion import alphas, times, v_loss
from demo.training.ip_adapter import LOOKED, looked_at
from demo.training.latents import Store
from demo.training.loop import Dice
from export.photomaker import IdEncoder

RANK = 8
PICTURES = (1, 1, 2, 2, 3, 4)  # of a subject, drawn from
BATCH_PIXELS = 4 * 512 * 512  # of the half-size pictures: few pictures and many steps
MIX = {(512, 512): 0.8, (416, 608): 0.1, (608, 416): 0.1}
NOTHING_SAID, NO_SUBJECT, BOTH = 0.1, 0.12, 0.4  # shares: empty texts, full captions without pictures, both things told
START_SUBJECTS, START_STEPS = 1200, 1500


@dataclass(frozen=True)
class Subject:
    """A noun in a text and the pictures that say what it is like."""

    thing: Thing
    at: int  # the noun's last token in the text as written
    pictures: tuple[Scene, ...]


@dataclass(frozen=True)
class Told:
    """A text and its subjects, from left to right."""

    text: str
    subjects: tuple[Subject, ...]


def portrait(thing: Thing, rng: random.Random) -> Scene:
    """A picture of the thing alone, anywhere it may be."""
    place, time = rng.choice(KINDS[thing.kind].places), rng.choice(TIMES)
    side = rng.choice(("left", "middle", "middle", "right"))
    scene = Scene(place, time, (replace(thing, side=side),), False, False, False, rng.random() < 0.2, False, 0)
    return sky(replace(scene, mountains=rng.random() < 0.2), rng)


def _noun(text: str, thing: Thing) -> re.Match[str] | None:
    """Where the thing's name stands, if it does once, on its own and without its colour."""
    names = "|".join(sorted({*NAMES[thing.kind]}, key=len, reverse=True))
    found = list(re.finditer(rf"\b(?:{names})\b", text))
    unsure = len(found) != 1 or re.search(rf"\b{thing.colour}\b", text[: found[0].start()].rsplit(" a", 1)[-1])
    return None if unsure else found[0]


def place(tokenizer: CLIPTokenizer, begin: str) -> int:
    """Of the last token of a text that begins so, among the text's."""
    ids: list[int] = tokenizer(begin)["input_ids"]  # with those before and after all words
    return len(ids) - 2


def tell(tokenizer: CLIPTokenizer, scene: Scene, things: Sequence[Thing], rng: random.Random) -> Told | None:
    """A text that says all but the colours of `things`, which pictures say; none if some thing's noun is unclear."""
    natural = {thing: replace(thing, colour=KINDS[thing.kind].natural) for thing in things}
    vague = replace(scene, things=tuple(natural.get(thing, thing) for thing in scene.things))
    pictures = rng.choice(PICTURES)
    for _ in range(30):
        text, subjects = caption(vague, rng), []
        for thing in things:
            noun = _noun(text, natural[thing])
            if noun is not None:
                shown = tuple(portrait(thing, rng) for _ in range(pictures))
                subjects.append(Subject(thing, place(tokenizer, text[: noun.end()]), shown))
        if len(subjects) == len(things):
            return Told(text, tuple(sorted(subjects, key=lambda subject: subject.at)))
    return None


def spread(ids: list[int], told: Told) -> tuple[list[int], list[int]]:
    """Token ids with each noun's last token once for every picture, 77 as before; and the places of these."""
    out, places, done = [], [], 0
    for subject in told.subjects:
        out += ids[done : subject.at]
        places += range(len(out), len(out) + len(subject.pictures))
        out += [ids[subject.at]] * len(subject.pictures)
        done = subject.at + 1
    return (out + ids[done:])[:LENGTH], places


class Low(nn.Module):
    """What is added to one linear layer: two thin ones."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Linear(linear.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, linear.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / RANK)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """b n c."""
        added: Tensor = self.up(self.down(x))
        return added


class Lora(nn.Module):
    """Of one attention, and that attention's computation with it."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.to_q_lora, self.to_k_lora, self.to_v_lora = Low(attn.to_q), Low(attn.to_k), Low(attn.to_v)
        self.to_out_lora = Low(attn.to_out[0])

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """b n c."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        q = attn.to_q(hidden_states) + self.to_q_lora(hidden_states)
        k, v = attn.to_k(source) + self.to_k_lora(source), attn.to_v(source) + self.to_v_lora(source)
        found = mixed(q, k, v, attn.heads)
        out: Tensor = attn.to_out[0](found) + self.to_out_lora(found)
        return out


class Photomaker(nn.Module):
    """All that the published file holds."""

    def __init__(self, vision: CLIPVisionModelWithProjection, unet: UNet2DConditionModel) -> None:
        super().__init__()
        width = vision.config.projection_dim
        self.encoder = IdEncoder(vision.config, unet.config.cross_attention_dim - width)
        self.encoder.load_state_dict(vision.state_dict(), strict=False)
        self.encoder.visual_projection_2.weight.data.copy_(vision.visual_projection.weight.data)
        self.encoder.vision_model.requires_grad_(False)
        attentions = {name.removesuffix(".processor") for name in unet.attn_processors}
        self.lora = nn.ModuleDict({name.replace(".", "/"): Lora(unet.get_submodule(name)) for name in attentions})

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Makes the network compute with the LoRA."""
        for name, part in self.lora.items():
            unet.get_submodule(name.replace("/", ".")).set_processor(part)

    def write(self, folder: Path) -> None:
        """The published file, half precision, and the vision half's config."""
        folder.mkdir(parents=True, exist_ok=True)
        lora = {
            f"unet.{name.replace('/', '.').replace('.to_', '.processor.to_', 1)}": p.half().contiguous()
            for name, p in self.lora.state_dict().items()
        }
        encoder = {name: p.half().contiguous() for name, p in self.encoder.state_dict().items()}
        torch.save({"id_encoder": encoder, "lora_weights": lora}, folder / "photomaker.bin")
        CLIPVisionConfig.from_dict(self.encoder.config.to_dict()).save_pretrained(folder)


def hidden(encoders: sdxl.Encoders, ids: Tensor) -> Tensor:
    """b 77 256: both encoders' states of token ids (b 77)."""
    one = encoders.first(ids, output_hidden_states=True).hidden_states[-2]
    two = encoders.second(ids, output_hidden_states=True).hidden_states[-2]
    return torch.cat([one, two], -1)


def start(encoder: IdEncoder, encoders: sdxl.Encoders) -> None:
    """Lets a fused noun be what the text encoders make of the same noun behind its colour."""
    rng, tokenizer = random.Random(1), encoders.tokenizer
    bare, shown, coloured = [], [], []
    while len(bare) * 50 < START_SUBJECTS:
        rows: list[tuple[Told, str]] = []
        while len(rows) < 50:
            scene = sample(rng)
            things = [thing for thing in scene.things if KINDS[thing.kind].coloured][:1]
            told = tell(tokenizer, scene, things, rng) if things else None
            if told is not None:
                begin = _noun(told.text, replace(things[0], colour=KINDS[things[0].kind].natural))
                assert begin is not None
                rows.append((told, f"{told.text[: begin.start()]}{things[0].colour} {told.text[begin.start() :]}"))
        at = torch.tensor([told.subjects[0].at for told, _ in rows])
        with torch.no_grad():
            for texts, to, further in (
                ([told.text for told, _ in rows], bare, 0), ([text for _, text in rows], coloured, 1)
            ):  # fmt: skip
                states = hidden(encoders, torch.tensor(encode(tokenizer, texts)))
                to.append(states[torch.arange(50), at + further])
            pictures = looked_at([told.subjects[0].pictures[0] for told, _ in rows], (LOOKED, LOOKED))
            shown.append(encoder.vision_model(pictures).pooler_output)
    words, seen, wanted = torch.cat(bare), torch.cat(shown), torch.cat(coloured)  # n 256, n 112, n 256
    deviation = wanted.std(0)
    parts = (encoder.visual_projection, encoder.visual_projection_2, encoder.fuse_module)
    optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], 2e-3)
    for step in range(START_STEPS):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / START_STEPS)
        few = torch.tensor(rng.sample(range(len(words)), 128))
        identity = torch.cat([encoder.visual_projection(seen[few]), encoder.visual_projection_2(seen[few])], -1)
        loss = F.mse_loss(encoder.fuse_module(words[few], identity) / deviation, wanted[few] / deviation)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    print(f"fused nouns are all but {loss.item():.3f} of the variance like coloured ones", flush=True)


class Transfer:
    """The task."""

    def __init__(self, data: Path, checkpoint: Path, vision: Path, folder: Path, started: Path) -> None:
        self._store, self._folder, self._schedule = Store(data), folder, alphas()
        self._encoders = sdxl.Encoders(
            checkpoint / "text_encoder", checkpoint / "text_encoder_2", checkpoint / "tokenizer"
        )
        self._unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32).eval()
        self._unet.requires_grad_(False)
        torch.manual_seed(0)
        model = Photomaker(CLIPVisionModelWithProjection.from_pretrained(vision, dtype=torch.float32), self._unet)
        if not started.exists():  # minutes that a resumed training need not spend again
            start(model.encoder, self._encoders)
            started.parent.mkdir(parents=True, exist_ok=True)
            save_file(model.encoder.state_dict(), started)
        model.encoder.load_state_dict(load_file(started))
        model.attach(self._unet)
        self.model: nn.Module = model

    def _told(self, scene: Scene, rng: random.Random) -> Told:
        u = rng.random()
        if u < NOTHING_SAID:
            return Told("", ())
        things = [thing for thing in scene.things if KINDS[thing.kind].coloured]
        if u >= NOTHING_SAID + NO_SUBJECT and things:
            chosen = things if rng.random() < BOTH else [rng.choice(things)]
            told = tell(self._encoders.tokenizer, scene, chosen, rng)
            if told is not None:
                return told
        return Told(caption(scene, rng), ())

    def loss(self, done: float, dice: Dice) -> tuple[Tensor, int]:
        """See `Task`."""
        (width, height), z, scenes = self._store.batch(MIX, BATCH_PIXELS, dice)
        told = [self._told(scene, dice.own) for scene in scenes]
        written = encode(self._encoders.tokenizer, [each.text for each in told])
        repeated = [spread(ids, each) for ids, each in zip(written, told, strict=True)]
        with torch.no_grad():
            states = hidden(self._encoders, torch.tensor([ids for ids, _ in repeated]))
            pooled = self._encoders.second(torch.tensor(written)).text_embeds
        rows = torch.tensor([row for row, (_, places) in enumerate(repeated) for _ in places], dtype=torch.long)
        if len(rows) > 0:
            places = torch.tensor([place for _, row in repeated for place in row])
            pictures = [picture for each in told for subject in each.subjects for picture in subject.pictures]
            encoder = self.model.encoder
            identity = encoder.identity(looked_at(pictures, (LOOKED, LOOKED)))
            states = states.index_put((rows, places), encoder.fuse_module(states[rows, places], identity))
        told_all = sdxl.Told(states, pooled).without(
            torch.tensor([each.text == "" and dice.own.random() < 0.6 for each in told])
        )
        t = times(len(z), 0.5 - 0.2 * done, dice)
        added = {"text_embeds": told_all.pooled, "time_ids": sdxl.size_ids(2 * width, 2 * height, len(z))}

        def predict(x: Tensor) -> Tensor:
            guess: Tensor = self._unet(x, t, told_all.states, added_cond_kwargs=added).sample
            return guess

        return v_loss(predict, z, t, self._schedule), len(z)

    def publish(self, average: Photomaker) -> None:
        """See `Task`."""
        average.write(self._folder)
