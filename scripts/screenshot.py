"""README's picture: the first screen of a report. python scripts/screenshot.py REPORT.html OUT.

OUT ends in .webp or .png. Needs a Chromium on the PATH; `make demo` writes a report.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: The picture may have this many bytes: a clone should stay small.
MAX_BYTES = 150_000


def photograph(page: Path, *, width: int, height: int) -> Image.Image:
    """The top of a page as a browser shows it, in light mode, at 1.5 times the resolution."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = started.new_page(
            viewport={"width": width, "height": height},
            color_scheme="light",
            device_scale_factor=1.5,
        )
        view.goto(page.resolve().as_uri())
        view.wait_for_timeout(500)  # fonts and the page's own script
        picture = view.screenshot()
        started.close()
    return Image.open(io.BytesIO(picture))


def main() -> int:
    """Write the picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, metavar="REPORT.html")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=820)
    options = parser.parse_args()
    image = photograph(options.page, width=options.width, height=options.height)
    for quality in (85, 70, 55, 40):  # of WebP; PNG has one size
        image.save(options.out, quality=quality, method=6, optimize=True)
        if options.out.stat().st_size <= MAX_BYTES:
            break
    size = options.out.stat().st_size
    print(f"{options.out}  {image.width} x {image.height}  {size / 1000:.0f} kB")
    return 0 if size <= MAX_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
