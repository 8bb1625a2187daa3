"""Settings: which of flag, environment, file and default wins, and that mistakes in them are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from renderkiln.home.settings import check_system, explain, load, mask_url
from renderkiln.schema.errors import SettingsError

pytestmark = pytest.mark.usefixtures("no_settings")


def origin(name: str, **flags: object) -> tuple[object, str]:
    return next((row.value, row.source) for row in explain(load(**flags), **flags) if row.name == name)


def write_toml(text: str) -> None:
    Path("renderkiln.toml").write_text(text, encoding="utf-8")


def test_flag_wins_over_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert origin("device") == ("auto", "default")
    write_toml('device = "mps"')
    assert origin("device") == ("mps", f"file {Path('renderkiln.toml').absolute()}")
    monkeypatch.setenv("RENDERKILN_DEVICE", "cuda")
    assert origin("device") == ("cuda", "environment RENDERKILN_DEVICE")
    assert origin("device", device="cpu") == ("cpu", "flag --device")


def test_an_empty_variable_and_a_flag_that_was_not_given_count_as_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml('device = "mps"')
    monkeypatch.setenv("RENDERKILN_DEVICE", "")
    assert load(device=None).device == "mps"
    assert origin("device", device=None)[1].startswith("file")


def test_every_setting_is_explained() -> None:
    settings = load()
    assert {row.name: row.value for row in explain(settings)} == settings.model_dump()


def test_a_misspelt_variable_is_an_error_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERKILN_REDIS_ULR", "redis://x")
    with pytest.raises(SettingsError, match=r"RENDERKILN_REDIS_ULR.*Did you mean 'RENDERKILN_REDIS_URL'"):
        load()


def test_the_debug_variable_is_no_misspelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERKILN_DEBUG", "1")
    assert load().device == "auto"


def test_an_unknown_key_in_the_file_is_an_error_with_the_nearest_name() -> None:
    write_toml('devise = "cpu"')
    with pytest.raises(SettingsError, match=r"renderkiln\.toml: unknown key 'devise'.*Did you mean 'device'"):
        load()


@pytest.mark.parametrize("text", ["device = ", "\x00", "[device", "device = 'cpu'\ndevice = 'cpu'"])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(text: str) -> None:
    write_toml(text)
    with pytest.raises(SettingsError, match=r"renderkiln\.toml cannot be read"):
        load()


def test_a_file_that_is_no_text_is_an_error_that_names_it() -> None:
    Path("renderkiln.toml").write_bytes(b"device = '\xff'")
    with pytest.raises(SettingsError, match=r"renderkiln\.toml cannot be read"):
        load()


@pytest.mark.parametrize(
    ("name", "value"), [("device", "tpu"), ("engine", "magic"), ("lease", "1"), ("job_timeout", "0"), ("lease", "x")]
)
def test_a_wrong_value_is_named_with_where_it_came_from(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} = '{value}' \\(from --{name.replace('_', '-')}\\)"):
        load(**{name: value})
    monkeypatch.setenv(f"RENDERKILN_{name.upper()}", value)
    with pytest.raises(SettingsError, match=f"{name} = '{value}' \\(from RENDERKILN_{name.upper()} or"):
        load()


def test_the_data_folder_is_made_absolute(no_settings: Path) -> None:
    assert load(data_dir="data").data_dir == no_settings / "data"
    assert load(data_dir="~/data").data_dir == Path.home() / "data"
    assert load().data_dir.is_relative_to(Path.home())


@pytest.mark.parametrize("path", ["~nobody-of-that-name/data", "a\x00b"])
def test_a_data_folder_that_no_path_can_name_is_an_error(path: str) -> None:
    with pytest.raises(SettingsError, match="cannot be used"):
        load(data_dir=path)


def test_the_default_data_folder_is_where_the_system_keeps_such_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert load().data_dir == Path.home() / "Library" / "Application Support" / "renderkiln"
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert load().data_dir == tmp_path / "share" / "renderkiln"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert load().data_dir == Path.home() / ".local" / "share" / "renderkiln"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@mini:6379/0", "redis://:***@mini:6379/0"),
        ("redis://user:secret@mini", "redis://user:***@mini"),
        ("redis://user:se@cret@mini", "redis://user:***@mini"),
        ("rediss://mini:6379", "rediss://mini:6379"),
        ("unix://:secret@/run/redis.sock?db=1", "unix://:***@/run/redis.sock?db=1"),
        ("redis://mini?db=1&password=secret&x=1", "redis://mini?db=1&password=***&x=1"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert mask_url(url) == shown
    settings = load(redis_url=url)
    assert "secret" not in repr(settings)
    assert origin("redis_url", redis_url=url)[0] == shown


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().device = "cpu"  # type: ignore[misc]


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_a_compute_unit_of_macos_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr("renderkiln.home.settings.platform.system", lambda: system)
    for unit in ("auto", "reference"):
        check_system(load(compute_unit=unit))
    monkeypatch.setenv("RENDERKILN_COMPUTE_UNIT", "cpu_and_ne")
    settings = load()
    if system == "Darwin":
        check_system(settings)
        return
    with pytest.raises(SettingsError, match="'cpu_and_ne' needs macOS"):
        check_system(settings)
