"""The rules of the tree: who may import whom, and what is imported nowhere."""

import ast
import dataclasses
import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("svc_jax", "data_pipeline", "configs", "launch")

# Imports point down this table, or stay on their line without circles. An entry `x.*`
# stands for every module below x.
LEVELS = (
    # Entry points, and what only they use.
    (
        "svc_jax",  # the package itself: loads a model
        "svc_jax.train",
        "svc_jax.train_asr",
        "svc_jax.runs",
        "svc_jax.evaluate_asr",
        "svc_jax.convert",
        "svc_jax.evaluate",
        "svc_jax.export",
        "svc_jax.adapt",
        "svc_jax.doctor",
        "svc_jax.demo",
        "svc_jax.describe",
        "svc_jax.hlo",
        "data_pipeline.prepare",
        "data_pipeline.graph",
        "data_pipeline.runners",
        "data_pipeline.report",
        "data_pipeline.appending",
        "data_pipeline.progress",
        "data_pipeline.embedded_dataset",
        "launch.*",
    ),
    # What a run is described by; only entry points read it.
    ("configs.*",),
    # What a run is built from, keeps, reports and is distributed by.
    (
        "svc_jax.builders",
        "svc_jax.bundles",
        "svc_jax.synthesis",
        "svc_jax.conversion",
        "svc_jax.adaptation",
        "svc_jax.parity",
        "svc_jax.programs",
        "svc_jax.onnx_graphs",
        "svc_jax.model_card",
        "svc_jax.sharding",
        "svc_jax.checkpoints",
        "svc_jax.metrics",
        "svc_jax.validation",
        "svc_jax.measures",
        "svc_jax.hearing",
        "svc_jax.evaluation_report",
        "svc_jax.identification",
        "svc_jax.recognition",
        "data_pipeline.decisions",
        "data_pipeline.extraction",
        "data_pipeline.shards",
    ),
    (
        "svc_jax.optimizers",
        "svc_jax.steps",
        "svc_jax.asr_steps",
        "svc_jax.probes",
    ),
    (
        "svc_jax.features",
        "svc_jax.long_recordings",
        "svc_jax.pitch",
        "svc_jax.pyin",
        "svc_jax.weights",
        "svc_jax.published",
        "svc_jax.weight_files",
        "svc_jax.audio_files",
        "svc_jax.f0_files",
        "data_pipeline.demo_corpus",
        "data_pipeline.corpora",
        "data_pipeline.sources",
        "data_pipeline.listening",
        "data_pipeline.segments",
        "data_pipeline.verdicts",
        "data_pipeline.feature_cache",
        "data_pipeline.input_pipeline",
        "data_pipeline.grain_pipeline",
        "data_pipeline.sampling",
        "data_pipeline.transcripts",
        "data_pipeline.decoding",
    ),
    ("svc_jax.models", "svc_jax.models.*"),
    (
        "svc_jax.dsp",
        "svc_jax.excitation",
        "svc_jax.stft",
        "svc_jax.resampling",
        "svc_jax.losses",
        "svc_jax.perturbation",
        "data_pipeline.schema",
    ),
    (
        "svc_jax.geometry",
        "svc_jax.types",
        "svc_jax.errors",
        "svc_jax.command_line",
        "data_pipeline",
    ),
)

TENSORFLOW = {"tensorflow", "tensorflow_datasets", "tensorflow_metadata"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, as dotted name, and where it is imported."""

    target: str
    place: str
    in_function: bool

    @property
    def root(self) -> str:
        return self.target.split(".")[0]


def module_name(path: pathlib.Path) -> str:
    """Returns the dotted name of a file, the package's own for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Returns every module outside tests/: dotted name -> file."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {module_name(path): path for path in sorted(files)}


@functools.cache
def tree(module: str) -> ast.Module:
    path = modules()[module]
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(module: str, node: ast.expr | ast.stmt | ast.excepthandler) -> str:
    return f"{modules()[module].relative_to(ROOT).as_posix()}:{node.lineno}"


def import_targets(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Returns what a statement imports: a submodule where there is one of that name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        is_package = modules()[module].name == "__init__.py"
        up = node.level - is_package
        package = module.split(".")[: -up or None]
        base = ".".join(filter(None, [*package, base]))
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in modules() else base for name in names]


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    """Returns every import of a module that runs, at import time or in a function."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in import_targets(module, node):
                yield Import(target, place(module, node), in_function)
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children = list(node.orelse)
        inside = in_function or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in children:
            yield from walk(child, inside)

    return tuple(walk(tree(module), in_function=False))


def level(module: str) -> int | None:
    """Returns the line of LEVELS a module stands on, counted from the bottom, or None.

    A module's own name counts before `x.*`, and a longer `x.*` before a shorter one.
    """
    names = [module]
    parts = module.split(".")
    names += [".".join([*parts[:n], "*"]) for n in range(len(parts) - 1, 0, -1)]
    # A folder without __init__.py is not among the modules, but can be imported.
    names += [f"{module}.*"]
    for name in names:
        for height, line in enumerate(reversed(LEVELS)):
            if name in line:
                return height
    return None


def own_imports(module: str) -> list[Import]:
    return [found for found in imports(module) if found.root in FOLDERS]


def points_up(module: str, target: str) -> bool:
    own, other = level(module), level(target)
    if own is None or other is None:
        return False  # test_every_module_has_a_level says what to do
    return own < other


def test_every_module_has_a_level():
    unknown = [module for module in modules() if level(module) is None]
    assert not unknown, (
        f"{unknown} stand on no level yet: add each to LEVELS in "
        "tests/architecture_test.py, next to the modules it is a peer of"
    )


def test_imports_point_down():
    upward = [
        f"{found.place} imports {found.target}"
        for module in modules()
        for found in own_imports(module)
        if points_up(module, found.target)
    ]
    assert not upward, "imports that point up:\n" + "\n".join(upward)


def test_imports_are_without_circles():
    graph = {
        module: {found.target for found in own_imports(module)} - {module}
        for module in modules()
    }
    done: set[str] = set()

    def find_circle(module: str, path: tuple[str, ...]) -> tuple[str, ...]:
        if module in path:
            return (*path[path.index(module) :], module)
        if module in done:
            return ()
        for target in sorted(graph.get(module, ())):
            if circle := find_circle(target, (*path, module)):
                return circle
        done.add(module)
        return ()

    circles = [" -> ".join(find_circle(module, ())) for module in graph]
    assert not any(circles), next(filter(None, circles))


def test_nothing_imports_the_tests():
    found = [
        f"{found.place} imports {found.target}"
        for module in modules()
        for found in imports(module)
        if found.root == "tests"
    ]
    assert not found, "\n".join(found)


def test_tensorflow_is_imported_only_in_functions_of_the_data_pipeline():
    found = [
        f"{found.place} imports {found.target}"
        for module in modules()
        for found in imports(module)
        if found.root in TENSORFLOW
        and not (module.startswith("data_pipeline.") and found.in_function)
    ]
    assert not found, "\n".join(found)


def test_configs_import_only_ml_collections_and_each_other():
    found = [
        f"{found.place} imports {found.target}"
        for module in modules()
        if module.split(".")[0] == "configs"
        for found in imports(module)
        if found.root not in {"ml_collections", "configs", "__future__"}
    ]
    assert not found, "\n".join(found)


def test_nothing_unpickles():
    found = [
        f"{found.place} imports {found.target}"
        for module in modules()
        for found in imports(module)
        if found.root in UNPICKLERS
    ]
    assert not found, "a pickle runs the code it holds:\n" + "\n".join(found)


def test_no_broad_except():
    def is_broad(caught: ast.expr | None) -> bool:
        if isinstance(caught, ast.Tuple):
            return any(is_broad(element) for element in caught.elts)
        return caught is None or ast.unparse(caught).removeprefix("builtins.") in {
            "Exception",
            "BaseException",
        }

    found = [
        place(module, node)
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type)
    ]
    assert not found, "name the errors that can happen:\n" + "\n".join(found)


def test_no_module_is_called_utils():
    found = [
        str(path.relative_to(ROOT))
        for folder in (*FOLDERS, "tests")
        for path in (ROOT / folder).rglob("*utils*")
        if path.stem in {"utils", "util"}
    ]
    assert not found, f"name the file after what it does: {found}"


@pytest.mark.parametrize(
    "imported",
    [
        "svc_jax",
        "data_pipeline.schema",
        "data_pipeline.input_pipeline",
        "data_pipeline.grain_pipeline",
        "data_pipeline.transcripts",
    ],
)
def test_is_imported_without_jax_and_tensorflow(imported):
    program = (
        f"import sys, {imported}\n"
        "print(sorted({'jax', 'jaxlib', 'flax', 'tensorflow'} & set(sys.modules)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "[]"
