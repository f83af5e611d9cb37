"""The styles of `style_preset`: what each adds to a prompt and to its negative. Data; knows no engine.

The names are those of the API that callers come from; the words are this project's own. A template keeps well below a
chunk of 77 tokens, so that a short prompt stays one chunk, and has no brackets, so that it weighs nothing.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """Words around a prompt, and what they want to keep out."""

    prompt: str  # with {prompt} where the caller's stands
    negative_prompt: str

    def applied(self, prompt: str) -> str:
        """The caller's prompt in this style."""
        return self.prompt.replace("{prompt}", prompt)

    def negated(self, negative_prompt: str) -> str:
        """The caller's negative prompt, which may be empty, with this style's behind it."""
        return ", ".join(text for text in (negative_prompt, self.negative_prompt) if text)


def nearest(name: str) -> tuple[str, ...]:
    """Names that look like a given one, the likest first; three at most."""
    folded = {known.casefold().replace("-", " "): known for known in STYLES}
    likest = difflib.get_close_matches(name.casefold().replace("-", " ")[:100], folded, n=3, cutoff=0.4)
    return tuple(folded[likeness] for likeness in likest)


STYLES: Mapping[str, Style] = {
    name: Style(prompt, negative_prompt)
    for name, prompt, negative_prompt in (
        # the plain ones and the media
        ("base", "{prompt}, clear subject, balanced composition", "blurry, cropped, watermark"),
        (
            "3d-model",
            "3d model of {prompt}, smooth geometry, ray traced materials, soft studio light, turntable render",
            "flat drawing, photo, sketch, grain, low polygon count",
        ),
        (
            "analog-film",
            "{prompt}, shot on 35 mm colour film, fine grain, faded tones, light leak, slight vignette",
            "digital render, drawing, oversharpened, neon colours, clean noise-free picture",
        ),
        (
            "anime",
            "anime drawing of {prompt}, cel shading, clean ink lines, bright flat colours, painted background",
            "photo, realistic skin, 3d render, muddy colours, western cartoon",
        ),
        (
            "cinematic",
            "film still of {prompt}, wide screen, anamorphic lens, shallow focus, moody key light, colour graded",
            "drawing, cartoon, flat light, snapshot, overexposed, amateur",
        ),
        (
            "comic-book",
            "comic book panel of {prompt}, bold ink outlines, halftone dots, dynamic shadows, vivid colours",
            "photo, realistic render, soft edges, blurry, pale colours",
        ),
        (
            "Craft Clay",
            "{prompt} made of craft clay, hand-modelled figures, fingerprints in the surface, stop motion set",
            "photo of real life, smooth plastic, drawing, metal, sharp edges",
        ),
        (
            "modeling-compound",
            "{prompt} sculpted from coloured modelling compound, soft dough, rounded shapes, tabletop light",
            "photo of real life, drawing, hard edges, glossy metal, fine detail",
        ),
        (
            "digital-art",
            "digital painting of {prompt}, crisp brushwork, rich colour, glowing light, detailed concept art",
            "photo, grainy, dull, rough sketch, low contrast",
        ),
        (
            "enhance",
            "{prompt}, vivid and sharp, fine detail, rich contrast, clean light, high resolution",
            "blurry, noisy, washed out, low contrast, jpeg artifacts, deformed",
        ),
        (
            "fantasy-art",
            "epic fantasy painting of {prompt}, enchanted light, sweeping vista, ornate detail, legendary mood",
            "modern city, photo, plain, minimal, dull, office",
        ),
        (
            "isometric",
            "isometric view of {prompt}, miniature diorama on a tile, parallel lines, clean soft-shaded 3d",
            "perspective view, photo, horizon, fisheye, sketch, clutter",
        ),
        (
            "line-art",
            "line drawing of {prompt}, thin black ink on white paper, even strokes, no shading",
            "colour, photo, shading, texture, 3d render, gradient",
        ),
        (
            "low-poly",
            "low poly {prompt}, faceted triangles, flat shaded planes, simple shapes, soft ambient light",
            "photo, smooth surfaces, fine texture, noise, ink outlines, realistic",
        ),
        (
            "neon-punk",
            "{prompt} in neon punk style, glowing magenta and cyan tubes, night rain, reflections, haze",
            "daylight, pastel, natural colours, countryside, faded, sepia",
        ),
        (
            "origami",
            "{prompt} folded from origami paper, crisp creases, pleated layers, plain studio backdrop",
            "photo of real life, fur, liquid, drawing, glossy plastic, round shapes",
        ),
        (
            "photographic",
            "photograph of {prompt}, natural light, true colours, 50 mm lens, sharp focus, fine texture",
            "drawing, painting, cartoon, render, plastic skin, oversaturated",
        ),
        (
            "pixel-art",
            "pixel art of {prompt}, 16-bit sprite, blocky pixels, small palette, hard edges",
            "photo, smooth gradient, blur, anti-aliasing, realistic, 3d render",
        ),
        (
            "tile-texture",
            "seamless tile texture of {prompt}, repeating pattern, evenly lit, seen straight from above",
            "single subject, horizon, perspective, vignette, visible seams, frame",
        ),
        # trades and genres of photography
        (
            "Advertising",
            "advertising poster shot of {prompt}, hero product light, glossy finish, inviting, room for a headline",
            "dull, messy background, amateur snapshot, dirty, noise, dim light",
        ),
        (
            "Food Photography",
            "food photography of {prompt}, fresh and appetising, garnish, macro, soft window light, wooden table",
            "stale, burnt, cartoon, plastic, cold light, messy, blurry",
        ),
        (
            "Real Estate",
            "real estate photo of {prompt}, wide angle, bright airy rooms, straight verticals, clear sky, inviting",
            "dark, cluttered, tilted, dirty, people, distorted walls, rain",
        ),
        # movements of art
        (
            "Abstract",
            "abstract painting of {prompt}, free shapes, bold fields of colour, rhythm of lines, no literal detail",
            "photo, realistic, literal, portrait, text, fine detail",
        ),
        (
            "Cubist",
            "cubist painting of {prompt}, broken planes, several viewpoints at once, angular shapes, earthy tones",
            "photo, smooth, realistic perspective, anime, soft round shapes",
        ),
        (
            "Graffiti",
            "graffiti mural of {prompt}, spray paint on brick wall, drips, bold letters, loud colours",
            "clean canvas, photo, pencil, pastel, polite, empty wall",
        ),
        (
            "Hyperrealism",
            "hyperrealist painting of {prompt}, flawless detail, every pore and reflection, exact light",
            "cartoon, sketch, loose brushwork, abstract, blurry, simple",
        ),
        (
            "Impressionist",
            "impressionist oil painting of {prompt}, short visible brushstrokes, flickering light, open air",
            "photo, hard outlines, flat colour, digital render, black shadows",
        ),
        (
            "Pointillism",
            "pointillist painting of {prompt}, made of countless small dots of pure colour, shimmering light",
            "lines, smooth gradient, photo, broad brushstrokes, flat colour, outline",
        ),
        (
            "Pop Art",
            "pop art print of {prompt}, screen print, thick outlines, flat bright colours, repeated dots",
            "photo, muted colours, realistic shading, soft edges, oil painting",
        ),
        (
            "Psychedelic",
            "psychedelic poster of {prompt}, swirling patterns, melting shapes, rainbow colours, vibrating contrast",
            "plain, monochrome, realistic, calm, photo, straight lines",
        ),
        (
            "Renaissance",
            "renaissance oil painting of {prompt}, soft modelling, golden light, balanced figures, aged varnish",
            "modern, photo, neon, cartoon, flat colour, digital",
        ),
        (
            "Steampunk",
            "steampunk {prompt}, brass gears, rivets, copper pipes, steam, victorian engineering, warm lamplight",
            "modern plastic, minimal, neon, smartphone, clean white, cartoon",
        ),
        (
            "Surrealist",
            "surrealist painting of {prompt}, impossible scale, dream logic, long shadows, strange calm sky",
            "ordinary scene, snapshot, cartoon, plain realism, text",
        ),
        (
            "Typography",
            "typographic poster of {prompt}, shapes built from bold letters, strong grid, two flat colours",
            "photo, realistic, soft painting, clutter, handwriting, gradient",
        ),
        (
            "Watercolor",
            "watercolor painting of {prompt}, wet washes, soft bleeding edges, paper grain, light pale colours",
            "photo, thick paint, hard outlines, dark, 3d render, glossy",
        ),
        # games
        (
            "Fighting Game",
            "fighting game scene of {prompt}, side view arena, action pose, impact sparks, energy glow, health bars",
            "calm, landscape photo, empty, soft, portrait, dull colours",
        ),
        (
            "GTA",
            "{prompt} as crime game cover art, bold outlines, hot sunset city, posterised shading, gritty attitude",
            "photo, pastel, fairy tale, pixel art, medieval, childlike",
        ),
        (
            "Super Mario",
            "{prompt} in a Super Mario platform world, round hills, floating blocks, green pipes, cheerful colours",
            "dark, gritty, realistic, horror, photo, grey",
        ),
        (
            "Minecraft",
            "{prompt} as a Minecraft world, cube blocks, square trees, pixelated textures, blocky clouds",
            "round shapes, smooth surfaces, photo, realistic, curved lines, painting",
        ),
        (
            "Pokémon",
            "{prompt} as a Pokémon game illustration, cute rounded creature design, clean outlines, cheerful colours",
            "realistic, scary, photo, gritty, muted colours, gore",
        ),
        (
            "Retro Arcade",
            "{prompt} on an 80s arcade screen, 8-bit sprites on black, scan lines, glowing primary colours",
            "photo, modern render, smooth shading, pastel, high resolution texture",
        ),
        (
            "Retro Game",
            "{prompt} as a 16-bit console game scene, tiled background, dithered palette, parallax layers",
            "photo, modern 3d, motion blur, realistic light, fine texture",
        ),
        (
            "RPG Fantasy Game",
            "role-playing fantasy game art of {prompt}, heroic, magic glow, ancient ruins, detailed armour, quest mood",
            "modern clothes, cars, office, photo, plain, low detail",
        ),
        (
            "Strategy Game",
            "{prompt} in a strategy game, seen from high above, small units, terrain map, readable clear shapes",
            "close-up, portrait, eye level, blurry, first person, photo",
        ),
        (
            "Street Fighter",
            "{prompt} in Street Fighter style, inked brush lines, exaggerated muscles, blazing energy, crowd behind",
            "realistic photo, slim pose, calm, pastel, watercolor, empty stage",
        ),
        (
            "Legend of Zelda",
            "{prompt} in a Legend of Zelda adventure, painterly cel shading, wide green land, old temple, gentle light",
            "modern city, guns, photo, grim, realistic texture, neon",
        ),
        # moods and themes
        (
            "Architectural",
            "architectural visualisation of {prompt}, clean lines, glass and concrete, exact proportions, daylight",
            "crooked, organic mess, cartoon, blurry, crowded, distorted",
        ),
        (
            "Disco",
            "{prompt} at a 70s disco, mirror ball, coloured spotlights, glitter, lit dance floor, purple and gold",
            "daylight, nature, grey, rustic, quiet, minimal",
        ),
        (
            "Dreamscape",
            "dreamscape of {prompt}, floating shapes, pastel mist, soft glow, endless horizon, weightless",
            "harsh light, gritty, ordinary street, sharp shadows, black",
        ),
        (
            "Dystopian",
            "dystopian {prompt}, ruined concrete, ash-grey sky, rust, smog, lonely, cold bleak light",
            "cheerful, sunny, bright colours, clean, flowers, cute",
        ),
        (
            "Fairy Tale",
            "fairy tale illustration of {prompt}, storybook, glowing forest, magic sparkles, warm gentle colours",
            "modern, grim, photo, machine, blood, grey concrete",
        ),
        (
            "Gothic",
            "gothic {prompt}, pointed arches, black lace, candles, stone tracery, dark red and black, brooding",
            "sunny, bright pastel, modern, cheerful, cartoon, beach",
        ),
        (
            "Grunge",
            "grunge {prompt}, scratched texture, torn paper, dirty stains, faded dark colours, raw 90s mood",
            "clean, polished, shiny, cute, pastel, symmetrical",
        ),
        (
            "Horror",
            "horror scene of {prompt}, deep black shadows, sickly green light, fog, dread, decayed",
            "cheerful, sunny, cute, bright colours, comedy, clean",
        ),
        (
            "Minimalist",
            "minimalist {prompt}, few simple shapes, wide empty space, two calm colours, clean edges",
            "clutter, ornament, busy pattern, texture, crowd, many colours",
        ),
        (
            "Monochrome",
            "black and white {prompt}, monochrome, rich greys, strong contrast, clear shapes",
            "colour, colourful, saturated, red, green, blue, sepia",
        ),
        (
            "Nautical",
            "nautical {prompt}, sea and sails, ropes, anchor, navy blue and white, salty wind, old chart",
            "desert, forest, city, dry land, pink, indoor",
        ),
        (
            "Space",
            "{prompt} in outer space, stars, nebula, distant planets, deep black sky, starlight",
            "daylight, blue sky, grass, indoor, trees, clouds",
        ),
        (
            "Stained Glass",
            "stained glass window of {prompt}, black lead lines, glowing jewel colours, light shining through",
            "photo, opaque paint, soft gradient, 3d render, dull, blurry",
        ),
        (
            "Techwear Fashion",
            "techwear fashion shot of {prompt}, black technical fabric, straps, buckles, urban night, futuristic",
            "vintage dress, bright floral, farm, cartoon, casual, sunny beach",
        ),
        (
            "Tribal",
            "tribal art of {prompt}, bold carved patterns, earth pigments, ochre and black, woven texture",
            "modern, chrome, neon, city, photo, pastel, digital",
        ),
        (
            "Zentangle",
            "zentangle drawing of {prompt}, filled with repeating ink patterns, black and white, fine even lines",
            "colour, photo, empty areas, shading, 3d, blurry",
        ),
        # paper
        (
            "Collage",
            "collage of {prompt}, cut-out magazine scraps, torn edges, glue, layered paper, mixed textures",
            "single clean photo, smooth render, seamless, plain, 3d",
        ),
        (
            "Flat Papercut",
            "flat papercut of {prompt}, a few plain coloured sheets, crisp cut shapes, no depth",
            "photo, shadow, gradient, 3d depth, texture, outline",
        ),
        (
            "Kirigami",
            "kirigami of {prompt}, one white sheet cut and folded open, lace-like slits, pop-up card, side light",
            "photo of real life, paint, many colours, clay, glue, crumpled",
        ),
        (
            "Paper Mache",
            "paper mache sculpture of {prompt}, rough pulp, newspaper strips, hand painted, bumpy surface",
            "smooth plastic, photo of real life, metal, drawing, polished",
        ),
        (
            "Paper Quilling",
            "paper quilling of {prompt}, rolled and coiled paper strips on edge, curls and spirals, bright colours",
            "photo, flat colour areas, paint, straight lines, 3d plastic",
        ),
        (
            "Papercut Collage",
            "papercut collage of {prompt}, overlapping patterned papers, scissor edges, playful shapes",
            "photo, smooth gradient, oil paint, render, realistic, sharp focus",
        ),
        (
            "Papercut Shadow Box",
            "papercut shadow box of {prompt}, lit from behind, receding paper layers, silhouettes, warm glow",
            "flat, daylight photo, drawing, single layer, glossy, noise",
        ),
        (
            "Stacked Papercut",
            "stacked papercut of {prompt}, many layers in steps of one colour, soft drop shadows, clean curves",
            "photo, flat, pencil, realistic texture, paint, noise",
        ),
        (
            "Thick Layered Papercut",
            "thick layered papercut of {prompt}, heavy card, deep cut relief, strong shadows between layers",
            "thin lines, flat, photo of real life, paint, translucent, blurry",
        ),
        # light and camera
        (
            "Alien",
            "alien {prompt}, unearthly biology, glowing spores, strange sky with two moons, violet and teal",
            "earthly, ordinary, human city, plain, cartoon, brown",
        ),
        (
            "Film Noir",
            "film noir {prompt}, black and white, venetian blind shadows, wet street, cigarette smoke, 1940s",
            "colour, sunny, cheerful, modern, cartoon, flat light",
        ),
        (
            "HDR",
            "high dynamic range photo of {prompt}, detail in bright clouds and dark shadows, intense colour, crisp",
            "flat contrast, blown highlights, crushed shadows, pale, drawing, blurry",
        ),
        (
            "Long Exposure",
            "long exposure photo of {prompt}, silky motion blur, light trails, smooth water, tripod, dusk",
            "frozen motion, snapshot, drawing, flash, grain, midday",
        ),
        (
            "Neon Noir",
            "neon noir {prompt}, dark rainy night, red and blue neon signs, wet asphalt, deep shadow, mystery",
            "daylight, bright sky, pastel, cheerful, countryside, white",
        ),
        (
            "Silhouette",
            "silhouette of {prompt}, pure black shape against a bright glowing sky, strong backlight, clean outline",
            "front light, visible detail, texture, dark background, flat grey",
        ),
        (
            "Tilt-Shift",
            "tilt-shift photo of {prompt}, narrow band of focus, blurred above and below, toy-like, from above",
            "everything sharp, close portrait, drawing, dark, night, fisheye",
        ),
    )
}
