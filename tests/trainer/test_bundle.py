import ast
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from data_pipeline import Fault
from trainer import networks
from trainer.serving import load_segmenter
from trainer.serving.bundle import bundle_source, join_modules

SEGMENTER = (
    "data_pipeline.pixels",
    "trainer.networks.blocks",
    "trainer.networks.synchronised",
    "trainer.networks.unet",
    "trainer.serving.components",
    "trainer.serving.segmenter",
    "trainer.serving.weights",
    "trainer.serving.opening",
)
SERVING = {"torch", "numpy", "PIL", "mlflow", "pandas"}

WITHOUT_THIS_PROJECT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("data_pipeline", "trainer", "tuning", "launch", "safetensors", "deepspeed"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module under a name that can be found."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def written(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    return written


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_registered_model_s_file_imports_what_serving_has_and_nothing_else(name):
    source = bundle_source(networks.NETWORKS[name].__module__)
    compile(source, "model.py", "exec")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - SERVING <= set(sys.stdlib_module_names)
    assert imported & SERVING >= {"torch", "numpy", "PIL", "mlflow"}
    assert "__future__" not in imported


def test_the_joined_segmenter_outlines_the_same_without_this_project(tmp_path, model_folder):
    images = [np.random.default_rng(seed).integers(0, 256, (50 + 30 * seed, 70), dtype=np.uint8) for seed in range(3)]
    np.savez(tmp_path / "images.npz", *images)
    use = f"""
folder = Path({str(tmp_path)!r})
with np.load(folder / "images.npz", allow_pickle=False) as given:
    images = [given[name] for name in given.files]
segmenter = load_segmenter(folder / "model", lambda name, **settings: UNet(**settings))
np.savez(folder / "maps.npz", *segmenter.probabilities(images))
"""
    script = tmp_path / "model.py"
    script.write_text(WITHOUT_THIS_PROJECT + join_modules(*SEGMENTER) + use)

    subprocess.run([sys.executable, "-I", str(script)], check=True, cwd=tmp_path, timeout=120)

    expected = load_segmenter(model_folder, networks.build).probabilities(images)
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as given:
        maps = [given[name] for name in given.files]
    for there, here in zip(maps, expected, strict=True):
        np.testing.assert_allclose(there, here, atol=1e-6)
        assert np.array_equal(there >= 0.5, here >= 0.5)


def test_every_network_gives_the_same_logits_out_of_its_file_and_out_of_one_of_all(tmp_path):
    modules = {name: kind.__module__ for name, kind in networks.NETWORKS.items()}
    (tmp_path / "all.txt").write_text(bundle_source(*modules.values()))
    for name, module in modules.items():
        (tmp_path / f"{name}.txt").write_text(bundle_source(module))
    asked = [(name, name) for name in modules] + [("all", "deepres"), ("all", "unetpp")]
    use = f"""
import torch

for file, kind in {[(file, networks.NETWORKS[name].__name__) for file, name in asked]!r}:
    scope = {{}}
    exec(compile(open(file + ".txt").read(), file, "exec"), scope)
    torch.manual_seed(1)
    with torch.no_grad():
        print(scope[kind]().eval()(torch.rand(1, 1, 64, 64))[0].norm().item())
"""
    script = tmp_path / "model.py"
    script.write_text(WITHOUT_THIS_PROJECT + use)

    ended = subprocess.run(
        [sys.executable, "-I", str(script)], check=True, cwd=tmp_path, stdout=subprocess.PIPE, timeout=240
    )

    norms = [float(line) for line in ended.stdout.split()]
    for (_, name), norm in zip(asked, norms, strict=True):
        torch.manual_seed(1)
        with torch.no_grad():
            expected = networks.build(name).eval()(torch.rand(1, 1, 64, 64))[0].norm().item()
        assert norm == pytest.approx(expected, rel=1e-5), name


def test_what_two_networks_share_is_bundled_once_and_before_them():
    source = bundle_source("trainer.networks.unet", "trainer.networks.segnet")
    places = [source.index(f"\nclass {name}(") for name in ("Network", "SynchronisedBatchNorm", "UNet", "SegNet")]
    assert places == sorted(places)
    assert source.count("\nclass Network(") == source.count("\nclass Convolution(") == 1
    assert "class SynchronisedBatchNorm" not in bundle_source("trainer.networks.segnet")


def test_imports_between_joined_modules_go_and_everything_else_stays(write):
    write(
        "inner",
        """\
        from __future__ import annotations

        LIMIT = 3  # of something
        """,
    )
    outer = write(
        "outer",
        """\
        # A comment above.
        import math
        from data_pipeline.pixels import (
            read_gray,
            resize_gray,
        )

        def use(file):
            return resize_gray(read_gray(file), (math.floor(2.5), 2))  # a comment beside
        """,
    )
    source = join_modules("data_pipeline.pixels", "inner", outer)
    assert "LIMIT = 3  # of something" in source
    assert "# A comment above.\nimport math\n\ndef use(file):" in source
    assert "(2.5), 2))  # a comment beside" in source
    assert "__future__" not in source
    assert "from data_pipeline" not in source
    scope = {}
    exec(compile(source, "joined.py", "exec"), scope)
    assert callable(scope["use"])


@pytest.mark.parametrize(
    "line",
    [
        "from trainer.metrics import hd95",
        "import trainer.metrics",
        "import math, data_pipeline.pixels",
        "from data_pipeline import Fault",
        "from data_pipeline.pixels import read_gray as read",
        "def late():\n    from data_pipeline.pixels import read_gray",
        "if True:\n    from data_pipeline.pixels import read_gray",
        "from . import sibling",
        "import launch",
    ],
)
def test_an_import_that_would_be_missing_is_named_with_its_line(write, line):
    name = write("asks_too_much", f"import math\n{line}\n")
    with pytest.raises(Fault, match=r"asks_too_much, line [23], cannot be bundled: (from|import) "):
        join_modules("data_pipeline.pixels", name)


def test_a_module_that_is_bundled_later_cannot_be_imported_from(write):
    with pytest.raises(Fault, match="cannot be bundled: from data_pipeline"):
        join_modules(write("early", "from data_pipeline.pixels import read_gray"), "data_pipeline.pixels")


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("def area(): ...", "class area: ...", "area"),
        ("LIMIT = 1", "LIMIT: int = 2", "LIMIT"),
        ("from math import floor as F", "from torch.nn import functional as F", "F"),
        ("import numpy as np", "np = 3", "np"),
        ("if True:\n    low, high = 1, 2", "for high in range(3): pass", "high"),
        ("from typing import Sequence", "from collections.abc import Sequence", "Sequence"),
    ],
)
def test_one_name_with_two_meanings_is_refused(write, one, other, name):
    with pytest.raises(Fault, match=f"other_part cannot be bundled: {name} is .*; rename one"):
        join_modules(write("one_part", one), write("other_part", other))


def test_names_with_one_meaning_and_names_inside_functions_may_be_used_twice(write):
    one = write("one_part", "import numpy as np\nfrom math import floor\nA = [n for n in (1, 2)]\n")
    other = write(
        "other_part", "import numpy as np\nfrom math import floor\ndef use():\n    n = A = 3\n    return n, A\n"
    )
    scope = {}
    exec(join_modules(one, other), scope)
    assert scope["A"] == [1, 2]


def test_a_module_that_is_not_there_is_named():
    for name in ("trainer.networks.nothing", "nothing.at.all"):
        with pytest.raises(Fault, match=f"{name} cannot be bundled: there is no such module"):
            join_modules(name)
