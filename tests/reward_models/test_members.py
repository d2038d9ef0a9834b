import pytest

from genrec_rl.errors import DataError
from reward_models.members import describe_member, load_member, save_member
from reward_models.scripted import Constant


def test_another_model_in_the_members_place_is_refused(tmp_path):
    entry = describe_member(Constant(0.5), folder="inner")
    assert sorted(save_member(Constant(0.25), tmp_path, folder="inner")) == [
        "inner/config.json",
        "inner/manifest.json",
    ]
    with pytest.raises(DataError, match="inner: holds model"):
        load_member(entry, tmp_path, provided={}, trusted_packages=())
