"""Colours, dashes and markers that stay apart for the colour-blind and in grey."""

# Okabe & Ito's colours, ordered so that neighbours differ in lightness too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
ARM_COLOURS = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", "#7A3E00", "#000000", ORANGE)
ARM_DASHES = ("solid", "dashed", "dotdash", "dotted")
ARM_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "cross", "x", "star")
#: The same for matplotlib.
MPL_DASHES = {"solid": "-", "dashed": "--", "dotdash": "-.", "dotted": ":"}
MPL_MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "inverted_triangle": "v",
    "cross": "P",
    "x": "X",
    "star": "*",
}


def style(place: int) -> tuple[str, str, str]:
    """Colour, dash and marker of the arm in this place."""
    return (
        ARM_COLOURS[place % len(ARM_COLOURS)],
        ARM_DASHES[place % len(ARM_DASHES)],
        ARM_MARKERS[place % len(ARM_MARKERS)],
    )
