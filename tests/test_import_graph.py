"""The house has floors: no module imports one from a floor above, and help imports no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers import run_fresh, tiny_settings, write_photos

import selfsame

ROOT = Path(selfsame.__file__).parent

# lowest first; modules on one floor may import each other only inside one package
FLOORS = [
    {"errors", "config"},
    {
        "lookup",
        "files",
        "native",
        "lock",
        "interrupt",
        "rng",
        "dist",
        "schedule",
        "machine",
        "reuse",
        "views.spec",
        "types",
    },
    {"optim", "data", "events"},
    {"recipe", "views"},
    {"memo"},
    {"nn", "checkpoint", "run"},
    {"backbones"},
    {"methods"},
    {"accumulate", "parallel", "sharded"},
    {"encoder"},
    {"console", "guard", "plan", "trackers"},
    {"train", "evals"},
    {"judge", "report", "classifier", "formats"},
    {"index"},
    {"api"},
    {"demo", "doctor", "verify"},
    {"claims"},
    {"cli"},
]


def floor_of(module: str) -> int:
    """Floor of ``selfsame.MODULE``; the longest name that is listed counts."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for number, names in enumerate(FLOORS):
            if ".".join(parts[:length]) in names:
                return number
    raise AssertionError(f"selfsame.{module} is on no floor: add it to FLOORS")


def imports(path: Path) -> set[str]:
    """Modules of selfsame that a file imports at run time, without the leading ``selfsame.``."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selfsame"):
            base = (node.module or "").removeprefix("selfsame").strip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                at = ROOT.joinpath(*name.split("."))
                found.add(name if at.is_dir() or at.with_suffix(".py").exists() else base)
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("selfsame.")
                for a in node.names
                if a.name.startswith("selfsame.")
            }
    return found - {""}


FILES = sorted(
    p for p in ROOT.rglob("*.py") if p.name not in ("__main__.py",) and p.parent != ROOT
) + [p for p in sorted(ROOT.glob("*.py")) if p.stem not in ("__init__", "__main__")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_imports_from_a_higher_floor(path: Path) -> None:
    relative = path.relative_to(ROOT).with_suffix("")
    module = ".".join(part for part in relative.parts if part != "__init__")
    for other in imports(path):
        same_package = other.split(".")[0] == module.split(".")[0]
        if not same_package:
            assert floor_of(other) < floor_of(module) or (
                floor_of(other) == floor_of(module) and module not in imports_of(other)
            ), f"{module} imports {other}, which is on a higher floor"


def imports_of(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split("."))
    return imports(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


def test_help_and_version_import_no_torch() -> None:
    code = (
        "import sys, selfsame.cli as c; c.main(['--version']); c.main(['pretrain', '--help']);"
        "heavy = {'torch', 'numpy', 'torchvision', 'timm', 'PIL'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    assert selfsame.__version__ in run_fresh(code)


def test_importing_every_module_imports_no_torchvision_and_no_timm() -> None:
    modules = [
        "selfsame." + ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in FILES
        if p.name != "__init__.py"
    ]
    code = (
        f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}];"
        "heavy = {'torchvision', 'timm', 'sklearn', 'pyarrow', 'tifffile', 'wandb', 'mlflow'};"
        "heavy &= set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run_fresh(code)


def test_a_run_and_its_evaluation_import_only_what_they_need(tmp_path: Path) -> None:
    """Each of these takes a twentieth of a second to several; torch itself takes one or two."""
    photos = write_photos(tmp_path / "photos", count=24, classes=2)
    out = tmp_path / "run"
    pretrain = ["pretrain", "simclr", str(photos), "--out", str(out), "--steps", "1"]
    pretrain += ["--batch-size", "8", *(f"--set={setting}" for setting in tiny_settings())]
    code = (
        "import gc, sys, selfsame.cli as c;"
        "heavy = {'torchvision', 'timm', 'sklearn', 'scipy', 'pandas', 'pyarrow', 'matplotlib',"
        "         'cv2', 'sympy', 'torch._dynamo', 'torch._inductor', 'numpy.ma'};"
        f"assert c.main({pretrain!r}) == 0;"
        f"assert c.main(['evaluate', {str(out)!r}, {str(photos)!r}, '--json']) == 0;"
        "assert gc.isenabled();"
        "found = heavy & set(sys.modules);"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    run_fresh(code)
    assert (out / "metrics.jsonl").read_text()
