"""Nothing that input, weights or configuration hold is ever run. Read from the source."""

import ast
from collections.abc import Iterator

from tests.architecture.source import imports, modules, nodes

MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "pty", "code", "ctypes",
}  # fmt: skip
"""Never imported; `torch.load` and `numpy.load` are looked at below."""

CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "yaml.unsafe_load",
    "yaml.full_load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "pickle.load", "pickle.loads",
    "tarfile.open", "extractall", "getattr_static", "pd.read_pickle", "pa.deserialize",
}  # fmt: skip
"""Never called. `re.compile` and methods of other objects that end alike are told apart by the full name."""

STARTS_A_PROCESS = {("pipeline/dataset/condition_check.py", "subprocess")}
"""A command that is ours and never changes: the condition of a search is its standard input."""

IMPORTS_BY_NAME = {
    "pipeline/run/start.py",
    "pipeline/run/engines/ray_cluster.py",
    "pipeline/run/engines/ray_code.py",
    "pipeline/run/engines/ray_first.py",
    "stages/contract/plugins.py",
}
"""Files that import a module by a name that is not written at the import: of a table in the same file, or declared by
an installed package."""


def name_of(node: ast.expr) -> str:
    """ "os.system" of the call's function."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    for path, tree in modules().items():
        for node in nodes(tree):
            if isinstance(node, ast.Call):
                yield path, node, name_of(node.func)


def test_no_module_that_runs_what_it_reads() -> None:
    users = {
        (path, name)
        for path, tree in modules().items()
        for name in imports(tree)
        if name.split(".")[0] in MODULES
    }
    assert users == STARTS_A_PROCESS


def test_no_call_that_runs_what_it_is_given() -> None:
    names = {(path, name) for path, _, name in calls()}
    assert {
        each for each in names if each[1] in CALLS or each[1].endswith((".extractall", ".allow_pickle"))
    } == set()


def test_tensors_are_read_as_tensors() -> None:
    """`torch.load` of weights alone, in every place."""
    loads = [(path, node) for path, node, name in calls() if name == "torch.load"]
    assert loads
    for path, node in loads:
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        only = options.get("weights_only")
        assert isinstance(only, ast.Constant), path
        assert only.value is True, path


def test_yaml_is_read_as_plain_values() -> None:
    loads = {(path, ast.unparse(node)) for path, node, name in calls() if name.startswith("yaml.load")}
    assert loads == {("pipeline/config/text.py", "yaml.load(text, Loader=_Loader)")}
    loader = next(
        node
        for node in nodes(modules()["pipeline/config/text.py"])
        if isinstance(node, ast.ClassDef) and node.name == "_Loader"
    )
    assert [ast.unparse(base) for base in loader.bases] == ["yaml.SafeLoader"]


def test_no_pickle_and_no_shell_by_an_option() -> None:
    risky = {"shell", "allow_pickle", "trust_remote_code"}
    found = {
        (path, word.arg, ast.unparse(word.value)) for path, node, _ in calls() for word in node.keywords
    }
    assert {(path, name) for path, name, value in found if name in risky and value != "False"} == set()


def test_modules_are_imported_by_written_names() -> None:
    loaders = ("import_module", "resolve_name", "point.load")
    places = {path for path, _, name in calls() if name.endswith(loaders)}
    assert places == IMPORTS_BY_NAME
