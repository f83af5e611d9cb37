"""The tokenizer's files: CLIP's format and rules (lower case, byte-level pairs, `</w>`), a vocabulary of our own.

Each word of the captions and some hundred other common words are one token; anything else falls into pieces.
"""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from demo.captions import caption
from demo.scenes import sample

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
OTHER_WORDS = """
a an the and or with without of in on at to by for from is are one two three four five six many several some no not
left right top bottom center centre middle side background foreground above below under over behind front between near
next beside around through into up down very quite so this that these those there here its his her their our my your
photo picture image illustration drawing painting art artwork sketch render style poster logo icon cartoon watercolor
oil pixel vector flat digital realistic abstract simple minimal modern vintage detailed highly quality best
masterpiece resolution sharp focus blurry ugly bad worst low high deformed noisy text watermark signature cropped jpeg
artifacts large small big little tiny huge tall short long wide narrow old new young beautiful pretty cute lovely
happy sad scary magic mystical dreamy cozy calm quiet wild warm cold hot dark bright light soft dramatic colorful
vivid pastel golden red orange yellow green blue purple pink white black brown teal gray grey gold silver violet
crimson scarlet turquoise cyan magenta beige lime navy striped dotted coloured colored boat ship sail sailing yacht
vessel home house cottage cabin hut barn castle tower church bridge road street path city town village farm garden
park window door roof wall fence lamp chair table car bus train plane bicycle truck rocket tree trees oak pine fir
palm bush leaf leaves grass flower flowers rose tulip daisy sunflower blossom mushroom toadstool cactus cacti forest
wood woods jungle hill hills mountain mountains valley cliff rock rocks stone cave island beach shore coast ocean sea
water wave waves river lake pond waterfall rain rainy snow snowy ice storm fog foggy mist misty wind windy sky cloud
clouds cloudy sun sunny moon moonlight star stars starry rainbow lightning sunlight sunshine shadow reflection day
daylight daytime noon midday morning afternoon evening sunset sunrise dawn dusk twilight night midnight spring summer
autumn fall winter season weather field fields meadow prairie desert dune dunes sand sandy cat cats kitten kitty dog
dogs puppy bird birds fish horse cow sheep pig rabbit fox bear wolf lion tiger elephant duck owl frog butterfly bee
dragon unicorn robot monster ghost person man woman boy girl child people face portrait eyes hair hat dress king queen
knight wizard witch astronaut pirate snowman santa christmas halloween tent camping campfire fire balloon balloons air
windmill mill lighthouse apple banana bread cake coffee cup glass bottle book box ball toy heart circle square
triangle diamond shape shapes sitting standing walking running flying floating swimming sleeping looking playing
shining glowing burning growing landscape seascape scenery scene view nature outdoor outside inside indoor room space
planet earth world wearing holding made like full empty open closed distant far close big wide angle shot macro camera
lens film cinematic lighting studio unreal engine concept fantasy anime manga comic ghibli van gogh monet picasso
"""


def _bytes_as_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(256 - len(plain))]


def _words() -> Counter[str]:
    rng = random.Random(0)
    words: Counter[str] = Counter()
    for _ in range(20000):
        words.update(caption(sample(rng), rng).replace(",", " ").replace(".", " ").split())
    words.update({word: 40 for word in OTHER_WORDS.split()})
    return Counter({word: count for word, count in words.items() if word.isalpha()})


def _merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte pair encoding until every word is one token."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            pieces[word] = joined


def build(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json, merges.txt and tokenizer.json with their configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    letters, merges = _bytes_as_letters(), _merges(_words())
    tokens = dict.fromkeys(
        [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=list(merges), bos_token=START, eos_token=END, unk_token=END, pad_token=END,
        model_max_length=LENGTH,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    vocab_file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> list[list[int]]:
    """77 token numbers a text, as the pipeline makes them."""
    ids: list[list[int]] = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    return ids
