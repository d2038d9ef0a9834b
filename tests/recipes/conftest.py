import pytest

from recipes import build_sids, prepare, sft


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


@pytest.fixture(scope="module")
def policy_dir(stages):
    """Folder of a tiny policy that learnt for an epoch."""
    folders = ["--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids")]
    words = ["--hidden_size", "32", "--num_layers", "1", "--num_heads", "2", "--intermediate_size", "32"]
    sft.main([*folders, *words, "--num_train_epochs", "1", "--output_dir", str(stages / "sft")])
    return stages / "sft"
