"""Pictures of a report's page as a reader sees it: light, dark and as narrow as a phone.

Run: python scripts/screenshots.py reports/demo/report.html
Writes: light.png, dark.png and narrow.png beside the page, each as tall as the page, 16,000
pixels at most. Needs: chromium on the PATH (`make screenshots` installs Debian's).
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDE, NARROW = 1280, 390
TALLEST = 16_000  # Chromium draws no taller picture in one piece.
LOOKS = {"light": (WIDE, 1), "dark": (WIDE, 0), "narrow": (NARROW, 1)}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
MEASURE = "<script>document.body.dataset.tall = document.documentElement.scrollHeight</script>"


def run(browser: str, folder: Path, *more: str) -> str:
    """What chromium prints; an error of its own ends the script."""
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser, *FLAGS, profile, *more]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def height(browser: str, page: Path, width: int, folder: Path) -> int:
    """How tall the page is at a width, measured in a copy that may run a script."""
    text = page.read_text(encoding="utf-8").replace("</body>", f"{MEASURE}</body>")
    copy = folder / "copy.html"
    copy.write_text(text.replace("default-src 'none';", ""), encoding="utf-8")
    dom = run(browser, folder, f"--window-size={width},800", "--dump-dom", copy.as_uri())
    found = re.search(r'data-tall="(\d+)"', dom)
    if found is None:
        sys.exit(f"chromium could not lay out {page}")
    return min(int(found.group(1)), TALLEST)


def main() -> None:
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("chromium is not on the PATH; `make screenshots` installs Debian's")
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("give the path of a report.html, as `make report` writes it")
    page = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for look, (width, scheme) in LOOKS.items():
            size = f"--window-size={width},{height(browser, page, width, folder)}"
            colours = f"--blink-settings=preferredColorScheme={scheme}"
            target = page.with_name(f"{look}.png")
            run(browser, folder, size, colours, f"--screenshot={target}", page.as_uri())
            print(target)


if __name__ == "__main__":
    main()
