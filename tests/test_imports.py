"""How modules depend on each other, and that importing them has no side effects."""

import ast
from pathlib import Path

from preloaded import run_python

ROOT = Path(__file__).parents[1]
FILES = [
    *ROOT.glob("*.py"),
    *(f for d in ("models", "data", "utils") for f in (ROOT / d).rglob("*.py")),
]
FORBIDDEN = {
    "utils": ("models", "data", "train"),
    "models": ("data", "train"),
    "data": ("models", "train"),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports_of(name: str) -> set[str]:
    """The modules of the project that `name` imports anywhere, within functions, too."""
    modules = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                modules.add(submodule if submodule in MODULES else node.module)
    return modules & MODULES.keys()


GRAPH = {name: imports_of(name) for name in MODULES}


def test_imports_have_no_cycle():
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in finished:
            for imported in sorted(GRAPH[name]):
                visit(imported, (*path, name))
            finished.add(name)

    for name in GRAPH:
        visit(name, ())
    assert finished == MODULES.keys() and len(finished) > 40


def test_imports_follow_the_layers():
    wrong = [
        f"{name} imports {imported}"
        for name, modules in GRAPH.items()
        for imported in modules
        if imported.partition(".")[0] in FORBIDDEN.get(name.partition(".")[0], ())
    ]
    assert not wrong


def names_of(path: Path) -> set[str]:
    """The names that a module defines or imports, anywhere at its top level."""
    names = {path.stem for path in path.parent.glob("*.py")} if path.stem == "__init__" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


def test_scripts_import_names_that_exist():
    """The benchmarks, which nothing else runs."""
    scripts = [*(ROOT / "benchmarks").glob("*.py")]
    modules = MODULES | {path.stem: path for path in scripts}
    modules |= {path.parent.name: path for path in FILES if path.stem == "__init__"}
    missing = []
    for script in scripts:
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                names = {alias.name for alias in node.names} - names_of(modules[node.module])
                missing += [f"{script.name}: {node.module}.{name}" for name in names]
    assert len(scripts) > 10
    assert not missing


def run_program(text: str, tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{text}")
    done = run_python([tmp_path / "program.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scripts_need_and_import_no_optional_package(tmp_path):
    program = """
import contextlib
packages = {"transformers", "timm", "scipy", "safetensors", "huggingface_hub"}
import train, val, detect, export
assert not packages & sys.modules.keys()
sys.modules.update(dict.fromkeys(packages))  # as if they were not installed
from models import build_model
build_model("yolo-n", 2), build_model("yolo-n", 2, "torchvision/resnet18")
for script in (train, val, detect, export):
    with contextlib.suppress(SystemExit):
        script.main(["--help"])
"""
    assert run_program(program, tmp_path).count("usage: ") == 4


def test_import_leaves_other_child_processes_alone(tmp_path):
    """A notebook that imports `train` has processes of its own, which end when they are done."""
    program = """
import multiprocessing, time
from pathlib import Path

def work():
    time.sleep(1)
    Path("done").touch()

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=work).start()
    import train, val, detect, export
"""
    run_program(program, tmp_path)
    assert (tmp_path / "done").exists()


def test_import_leaves_multiprocessing_signals_and_environment_alone(tmp_path):
    program = """
import os, signal
from multiprocessing.queues import Queue
def state():
    spinning = os.environ.get("GOMP_SPINCOUNT")
    return [Queue._on_queue_feeder_error, spinning, *map(signal.getsignal, signal.Signals)]
before = state()
import train, val, detect, export
print(before == state())
"""
    assert run_program(program, tmp_path) == "True\n"
