import pytest

from recipes import build_sids, prepare


@pytest.fixture(scope="module", autouse=True)
def _no_wandb():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folders of the two earlier stages, on a small synthetic market."""
    folder = tmp_path_factory.mktemp("stages")
    sizes = ["--n_users", "40", "--n_items", "60", "--n_requests", "400"]
    prepare.main(["--source", "synthetic", *sizes, "--output_dir", str(folder / "data")])
    words = ["--collaborative", "false", "--output_dir", str(folder / "sids")]
    build_sids.main(["--data_dir", str(folder / "data"), *words])
    return folder
