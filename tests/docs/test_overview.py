"""The picture of the landing page is what its script draws, from the functions that train."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent.parent


def test_the_picture_is_drawn_by_its_script_and_fits() -> None:
    spec = importlib.util.spec_from_file_location("overview", ROOT / "docs" / "overview.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.draw()
    assert (ROOT / "docs" / "overview.svg").read_text(encoding="utf-8") == drawn, "run `python docs/overview.py`"
    texts = ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter() if element.text]
    # four of the eight predictions continue " 68 = 408." and end where a token ends; " 6" ends inside one
    assert texts.count("✓ 1") == 4 and texts.count("✗ 0") == 4 and texts.count("off boundary") == 1
    assert "".join(token for token, _ in module.DOCUMENT[-2][-1:]) == module.TARGET
    assert module.CONTINUATION.decode().startswith(module.TARGET)
