"""The configuration: what is taken from where, and what an operator is told about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from homeserver.config import (
    NOT_BUILT,
    Config,
    Email,
    Listener,
    OidcProvider,
    RateLimit,
    load_config,
    settings_without_effect,
)
from homeserver.settings_model import keys
from homeserver.settings_source import ConfigError, ConfigErrors

EXAMPLE = Path(__file__).parents[1] / "config.example.yaml"


def written(folder: Path, text: str) -> Path:
    """A configuration file of this text."""
    path = folder / "lair.yaml"
    path.write_text(text)
    return path


def errors_of(path: Path | None, environ: dict[str, str] | None = None) -> dict[str, ConfigError]:
    """What is wrong with a configuration, by key."""
    with pytest.raises(ConfigErrors) as raised:
        load_config(path, environ or {})
    for error in raised.value.errors:
        assert error.key in str(raised.value)
        assert error.problem in str(raised.value)
        assert error.mend in str(raised.value)
    return {error.key: error for error in raised.value.errors}


def test_the_example_has_every_key_with_its_default() -> None:
    data = yaml.safe_load(EXAMPLE.read_text())

    assert keys_in(data, Config) == {key for key, _ in keys(Config) if not inside_an_optional_section(key)}
    assert load_config(EXAMPLE, {}) == Config(data_dir=EXAMPLE.parent / "data")


def test_the_example_comments_every_key() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith(("#", "- "))]

    assert [line for line in lines if "#" not in line and not line.endswith(":")] == []


def keys_in(data: dict[str, Any], model: type[BaseModel], prefix: str = "") -> set[str]:
    """The dotted paths of a document, in the form of `keys`."""
    found: set[str] = set()
    for key, value in data.items():
        found.add(f"{prefix}{key}")
        if isinstance(value, dict):
            found |= keys_in(value, model, f"{prefix}{key}.")
        elif isinstance(value, list):
            for item in value:
                found |= keys_in(item, model, f"{prefix}{key}[].") if isinstance(item, dict) else set()
    return found


def inside_an_optional_section(key: str) -> bool:
    """Whether a key is in a section that is null by default, so that only a comment can show it."""
    sections = ("listeners[].tls.", "registration.captcha.", "email.", "sso.cas.", "sso.oidc[].")
    return key.startswith(sections)


def test_without_a_file_the_defaults_hold_and_paths_count_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {})

    assert config.server_name == "lair.localhost"
    assert config.data_dir == tmp_path / "data"
    assert config.signing_key_file == tmp_path / "data" / "signing.key"
    assert config.listeners == (
        Listener(bind="127.0.0.1", port=8008, apis=("client", "federation", "admin", "web")),
    )
    assert config.rate_limits.registration == RateLimit(per_second=0.2, burst=3)
    assert settings_without_effect(config) == []


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "# nothing\n"), {}).server_name == "lair.localhost"


def test_relative_paths_count_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    path = written(
        tmp_path / "etc",
        """
        data_dir: ../var
        signing_key_path: /keys/signing.key
        listeners: [{port: 0, tls: {certificate: tls.crt, private_key: tls.key}}]
        federation: {trusted_ca_files: [ca.crt]}
        """,
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("etc/lair.yaml"), {})

    assert config == load_config(path, {})
    assert config.data_dir == tmp_path / "etc" / ".." / "var"
    assert config.signing_key_file == Path("/keys/signing.key")
    assert config.listeners[0].tls is not None
    assert config.listeners[0].tls.certificate == tmp_path / "etc" / "tls.crt"
    assert config.federation.trusted_ca_files == (tmp_path / "etc" / "ca.crt",)


def test_a_limit_keeps_the_default_of_the_number_that_is_not_given(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, "rate_limits: {message: {burst: 7}, register: {per_second: 3}}"), {}
    )

    assert config.rate_limits.message == RateLimit(per_second=10, burst=7)
    assert config.rate_limits.registration == RateLimit(per_second=3, burst=3)


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        setattr(Config(), "processes", 2)  # noqa: B010


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("federation: {allow_server: []}", "federation.allow_server", "federation.allow_servers"),
        ("listeners: [{prot: 1}]", "listeners[0].prot", "listeners[0].port"),
        ("databse: {url: x}", "databse", "database"),
        ("pool_size: 4", "pool_size", "database.pool_size"),
        ("database: {url_fil: x}", "database.url_fil", "database.url_file"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_an_error_that_names_the_nearest_key(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    errors = errors_of(written(tmp_path, text))

    assert list(errors) == [key]
    assert f"did you mean {nearest}?" in errors[key].mend


def test_an_unknown_key_that_resembles_none_is_an_error(tmp_path: Path) -> None:
    assert "take it out" in errors_of(written(tmp_path, "xyzzy_quux: 1"))["xyzzy_quux"].mend


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("server_name: https://example.org", "server_name", "not a server name"),
        ("server_name: 'example.org:0'", "server_name", "impossible port"),
        ("server_name: 5", "server_name", "not text"),
        ("processes: true", "processes", "true is not a whole number"),
        ("processes: '2'", "processes", '"2" is not a whole number'),
        ("processes: 0", "processes", "0 is too small"),
        ("processes: 1000", "processes", "1000 is too large"),
        ("registration: {enabled: 1}", "registration.enabled", "1 is neither true nor false"),
        ("registration: {enabled: 'true'}", "registration.enabled", "neither true nor false"),
        ("registration: {shared_secret: ''}", "registration.shared_secret", "is empty"),
        ("registration: {captcha: {public_key: a}}", "registration.captcha.private_key", "is not given"),
        ("rooms: {default_version: 12}", "rooms.default_version", "12 is not text"),
        ("rooms: {default_version: '99'}", "rooms.default_version", "no room version"),
        ("rooms: {publish_to_directory: all}", "rooms.publish_to_directory", "not one of the choices"),
        ("rooms: {default_rooms: [lobby]}", "rooms.default_rooms[0]", "not a room alias"),
        ("rooms: {default_rooms: ['#a:elsewhere']}", "rooms.default_rooms", "belongs to another server"),
        ("listeners: []", "listeners", "has no entry"),
        ("listeners: {port: 1}", "listeners", "is not a list"),
        ("listeners: [{port: 65536}]", "listeners[0].port", "65536 is not a port"),
        ("listeners: [{port: -1}]", "listeners[0].port", "-1 is not a port"),
        ("listeners: [{port: true}]", "listeners[0].port", "true is not a whole number"),
        ("listeners: [{bind: '[::1]'}]", "listeners[0].bind", "neither an address nor a host name"),
        ("listeners: [{bind: 300.1.1.1}]", "listeners[0].bind", "neither an address nor a host name"),
        ("listeners: [{apis: [clients]}]", "listeners[0].apis[0]", "not one of the choices"),
        ("listeners: [{port: 1}, {port: 1}]", "listeners", "two entries listen on 127.0.0.1:1"),
        ("listeners: [{trusted_proxies: [10.0.0.1/8]}]", "listeners[0].trusted_proxies[0]", "not an address"),
        ("listeners: [{tls: {certificate: a}}]", "listeners[0].tls.private_key", "is not given"),
        ("database: {pool_size: 0}", "database.pool_size", "0 is too small"),
        ("database: {url: 'mysql://host/name'}", "database.url", "not the URL of a PostgreSQL database"),
        ("database: {url: 'postgresql://host:99999/name'}", "database.url", "not a URL"),
        ("database: {url: 'postgresql://host'}", "database.url", "names no database"),
        ("database: postgresql://host/name", "database", "is not a section"),
        ("database: {run_as: 'no body'}", "database.run_as", "not the name of a user"),
        ("redis: {url: 'http://host'}", "redis.url", "not the URL of a Redis server"),
        ("public_base_url: example.org", "public_base_url", "not the URL of a web server"),
        ("federation: {allowed_ip_ranges: [localhost]}", "federation.allowed_ip_ranges[0]", "not an address"),
        ("federation: {deny_servers: evil.org}", "federation.deny_servers", "is not a list"),
        ("federation: {deny_servers: ['*']}", "federation.deny_servers[0]", "not a server name"),
        ("email: {host: mail}", "email.from", "is not given"),
        ("email: {host: mail, sender: a}", "email.sender", "is not a setting"),
        ("rate_limits: {login: {per_second: 0}}", "rate_limits.login.per_second", "0 is too small"),
        ("rate_limits: {login: {per_second: .inf}}", "rate_limits.login.per_second", "is not finite"),
        ("rate_limits: {login: {per_second: true}}", "rate_limits.login.per_second", "true is not a number"),
        ("rate_limits: {registration: {burst: 1}}", "rate_limits.registration", "is not a setting"),
        ("logging: {level: info}", "logging.level", "not one of the choices"),
        ("data_dir: ''", "data_dir", "is empty"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_an_error_that_says_why(tmp_path: Path, text: str, key: str, problem: str) -> None:
    errors = errors_of(written(tmp_path, text))

    assert problem in errors[key].problem
    assert errors[key].mend
    assert errors[key].source == f"{tmp_path / 'lair.yaml'}, line 1"


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "processes: 0\nlogging:\n  level: x\n  format: y\nnonsense_key: 1\n")
    errors = errors_of(path, {"LAIR_DATABASE__POOL_SIZE": "many"})

    assert {key: error.source for key, error in errors.items()} == {
        "processes": f"{path}, line 1",
        "logging.level": f"{path}, line 3",
        "logging.format": f"{path}, line 4",
        "nonsense_key": f"{path}, line 5",
        "database.pool_size": "LAIR_DATABASE__POOL_SIZE",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("processes: 1\nlogging: {}\nprocesses: 2", "processes|is given twice, on line 1 and on line 3"),
        ("rooms:\n  default_rooms: []\n  default_rooms: []", "rooms.default_rooms|on line 2 and on line 3"),
        ("listeners:\n  - port: 1\n    port: 2", "listeners[0].port|on line 2 and on line 3"),
        ("yes: 1", "|line 1 has a key that is no text"),
        ("a: [1", "FILE|is not YAML on line 1"),
        ("a: !!python/object:os.system x", "FILE|is not YAML on line 1"),
        ("a: 2024-13-41", "FILE|holds what YAML cannot read"),
        ("a: \x01", "FILE|holds what YAML cannot read"),
        ("a: 1\n---\nb: 1", "FILE|is not YAML on line 2"),
        ("just words", "FILE|is not a list of settings"),
    ],
)  # fmt: skip
def test_a_file_whose_text_is_wrong_is_refused_by_line(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    key, _, said = problem.replace("FILE", str(path)).partition("|")

    assert said in errors_of(path)[key].problem


def test_a_merged_section_may_override_what_it_merges(tmp_path: Path) -> None:
    path = written(tmp_path, "listeners:\n  - &first {port: 1, bind: '::1'}\n  - {<<: *first, port: 2}\n")

    assert [(entry.bind, entry.port) for entry in load_config(path, {}).listeners] == [("::1", 1), ("::1", 2)]


def test_a_file_that_refers_to_itself_is_an_error(tmp_path: Path) -> None:
    errors_of(written(tmp_path, "listeners: &all [*all]"))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"data_dir: \xe4")

    assert "does not exist" in errors_of(tmp_path / "none")[str(tmp_path / "none")].problem
    assert "cannot be read" in errors_of(tmp_path)[str(tmp_path)].problem
    assert "not UTF-8" in errors_of(tmp_path / "latin")[str(tmp_path / "latin")].problem


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, "server_name: a.org\nprocesses: 2\nlogging: {level: DEBUG, format: json}\nemail: null"
    )
    config = load_config(
        path,
        {
            "LAIR_SERVER_NAME": "1.5",
            "LAIR_PROCESSES": "3",
            "LAIR_REGISTRATION__ENABLED": "true",
            "LAIR_LOGGING__LEVEL": "ERROR",
            "LAIR_FEDERATION__ALLOWED_IP_RANGES": "[127.0.0.0/8, '::1']",
            "LAIR_PUBLIC_BASE_URL": "",
            "LAIR_EMAIL__HOST": "mail",
            "LAIR_EMAIL__FROM": "a@a.org",
            "LAIR_LISTENERS__0__PORT": "0",
            "LAIR_LISTENERS__1__BIND": "::1",
            "LAIR_SSO__OIDC": "[{id: a, name: b, issuer: 'https://c', client_id: d, client_secret: e}]",
            "LAIR_RATE_LIMITS__MESSAGE__BURST": "4",
        },
    )

    assert config.server_name == "1.5"
    assert config.processes == 3
    assert config.registration.enabled
    assert (config.logging.level, config.logging.format) == ("ERROR", "json")
    assert [str(allowed) for allowed in config.federation.allowed_ip_ranges] == ["127.0.0.0/8", "::1/128"]
    assert config.public_base_url is None
    assert config.email == Email.model_validate({"host": "mail", "from": "a@a.org"})
    assert [(entry.bind, entry.port) for entry in config.listeners] == [("127.0.0.1", 0), ("::1", 8008)]
    assert [provider.id for provider in config.sso.oidc] == ["a"]
    assert config.rate_limits.message == RateLimit(per_second=10, burst=4)


def test_variables_that_name_no_key_are_ignored() -> None:
    environ = {
        "LAIR_TEST_DATABASE_URL": "x",
        "LAIR_": "x",
        "LAIR_DATABASE__": "x",
        "LAIR_DATABASE__URL__MORE": "x",
        "LAIR_LISTENERS__FIRST__PORT": "x",
        "LAIR_LISTENERS__0": "x",
        "LAIR_PROCESSES_FILE": "x",
        "PROCESSES": "x",
    }

    assert load_config(None, environ) == load_config(None, {})


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("LAIR_PROCESSES", "two", "processes"),
        ("LAIR_REGISTRATION__ENABLED", "1", "registration.enabled"),
        ("LAIR_REGISTRATION__ENABLED", "[", "registration.enabled"),
        ("LAIR_LISTENERS__2__PORT", "1", "listeners[2].port"),
        ("LAIR_SERVER_NAME", "", "server_name"),
        ("LAIR_DATABASE", "x", "database"),
    ],
)
def test_a_wrong_value_in_the_environment_is_an_error_that_names_the_variable(
    name: str, value: str, key: str
) -> None:
    assert errors_of(None, {name: value})[key].source == name


def test_a_secret_can_be_the_text_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://lair:pw@host/lair\n")
    (tmp_path / "secret").write_text("  hush\n")
    path = written(
        tmp_path,
        """
        database: {url_file: url}
        registration:
          shared_secret_file: secret
          captcha: {public_key: key, private_key_file: secret}
        email: {host: mail, from: a@a.org, password_file: secret}
        sso: {oidc: [{id: a, name: b, issuer: 'https://c', client_id: d, client_secret_file: secret}]}
        redis: {url_file: null}
        """,
    )
    config = load_config(path, {})

    assert config.database.url == "postgresql://lair:pw@host/lair"
    assert config.registration.shared_secret == "hush"
    assert config.registration.captcha is not None
    assert config.registration.captcha.private_key == "hush"
    assert config.email is not None
    assert config.email.password == "hush"
    assert config.sso.oidc[0].client_secret == "hush"
    assert config.redis.url is None
    assert "hush" not in repr(config)
    assert "pw@host" not in repr(config)


def test_the_environment_overrides_a_secret_in_whichever_form_the_file_has_it(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    by_value = written(tmp_path, "registration: {shared_secret: zero}")

    from_file = load_config(by_value, {"LAIR_REGISTRATION__SHARED_SECRET_FILE": "two"})
    by_file = written(tmp_path, "registration: {shared_secret_file: one}")
    from_text = load_config(by_file, {"LAIR_REGISTRATION__SHARED_SECRET": "three"})

    assert from_file.registration.shared_secret == "two"
    assert from_text.registration.shared_secret == "three"


def test_a_secret_that_is_given_twice_or_not_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    text = """
        database: {url: 'postgresql://host/name', url_file: empty}
        redis: {url_file: missing}
        registration:
          shared_secret_file: empty
          captcha: {public_key: key, private_key_file: binary}
        email: {host: mail, from: a@a.org, password_file: 5}
        """
    errors = errors_of(written(tmp_path, text))

    assert {key: error.problem.removeprefix(f"{tmp_path}/") for key, error in errors.items()} == {
        "database.url_file": "is given beside database.url",
        "redis.url_file": "missing cannot be read: No such file or directory",
        "registration.shared_secret_file": "empty is empty",
        "registration.captcha.private_key_file": "binary is not UTF-8 text",
        "email.password_file": "is not the path of a file",
    }
    twice = {
        "LAIR_DATABASE__URL": "postgresql://host/name",
        "LAIR_DATABASE__URL_FILE": str(tmp_path / "empty"),
    }
    assert "is given beside database.url" in errors_of(None, twice)["database.url_file"].problem


@pytest.mark.invariant("SEC-WEB-1")
@pytest.mark.parametrize(
    "text",
    [
        "database: {url: 'mysql://lair:hush@host/name'}",
        "database: {url: 'postgresql://lair:hush@host:port/name'}",
        "database: postgresql://lair:hush@host/name",
        "database: {url: [hush]}",
        "database: {ulr: hush}",
        "registration: {shared_secret: {x: hush}}",
        "registration: {shared_secret: \"hush\\n\"}",
        "redis: {url: hush}",
        "redis: [hush]",
        "email: hush",
    ],
)  # fmt: skip
def test_sec_web_1_no_error_tells_a_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        load_config(written(tmp_path, text), {})

    assert "hush" not in str(raised.value)


def test_a_setting_without_effect_is_named_when_it_is_not_its_default(tmp_path: Path) -> None:
    text = """
        processes: 1
        redis: {url: 'redis://host/0'}
        federation: {verify_certificates: false, deny_servers: [evil.org], enabled: true}
        email: {host: mail, from: a@a.org}
        rate_limits: {enabled: false}
        """
    without_effect = settings_without_effect(load_config(written(tmp_path, text), {}))

    assert without_effect == [
        key
        for key in ("redis.url", "federation.verify_certificates", "federation.deny_servers", "email")
        if any(f"{key}.".startswith(f"{name}.") for name in NOT_BUILT)
    ]


def test_the_names_of_settings_without_effect_are_settings() -> None:
    assert set(NOT_BUILT) <= {key for key, _ in keys(Config)}


def test_a_client_secret_is_no_part_of_a_providers_text() -> None:
    provider = OidcProvider(id="a", name="b", issuer="https://c", client_id="d", client_secret="hush")

    assert "hush" not in f"{provider} {provider!r}"
