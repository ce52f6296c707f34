"""Every setting of the server, with its type, its limits and its default.

A key of config.example.yaml is a field here, a section a class. Values never change while the server runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from homeserver.protocol import identifiers
from homeserver.setting_types import (
    Count,
    Entries,
    Host,
    IpRange,
    LocalPath,
    OptionalSecret,
    Port,
    PostgresqlUrl,
    Rate,
    RedisUrl,
    RoomAliasText,
    RoomVersionName,
    SecretText,
    ServerNameText,
    Text,
    UserName,
    WebUrl,
)
from homeserver.settings_source import bad_value, read_settings

ENVIRONMENT_PREFIX: Final = "LAIR_"

NOT_BUILT: Final = (
    "redis",
    "processes",
    "registration.captcha",
    "rooms.default_rooms",
    "outbound",
    "media",
    "application_services",
    "email",
    "sso",
    "presence",
)
"""The settings, and sections of them, that are checked but change nothing yet."""

Api = Literal["client", "federation", "admin", "web", "metrics"]


class Section(BaseModel):
    """What all sections have in common: exact types, no unknown keys, no change once read."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
    )


class Tls(Section):
    """The files of a listener's certificate chain and of its key, both PEM."""

    certificate: LocalPath
    private_key: LocalPath


class Listener(Section):
    """An address on which the server answers, and what it answers there."""

    bind: Host = "127.0.0.1"
    port: Port = 8008
    apis: Entries[Api] = ("client", "federation", "admin", "web")
    trusted_proxies: Entries[IpRange] = ()
    tls: Tls | None = None


class DatabaseConfig(Section):
    """Where the data is; without a URL in the embedded PostgreSQL."""

    url: PostgresqlUrl = None
    pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    run_as: UserName = "nobody"


class RedisConfig(Section):
    """How several hosts that serve one server name wake each other."""

    url: RedisUrl = None


class Captcha(Section):
    """The keys of a reCAPTCHA that a registration has to solve, and where its answer is verified."""

    public_key: Text
    private_key: SecretText
    verify_url: WebUrl = "https://www.google.com/recaptcha/api/siteverify"


class Registration(Section):
    """Who may make an account."""

    enabled: bool = False
    require_token: bool = True
    guests: bool = False
    shared_secret: OptionalSecret = None
    captcha: Captcha | None = None


class Passwords(Section):
    """What the hash of a password costs."""

    argon2_memory_kib: Annotated[int, Field(ge=8, le=4 * 1024 * 1024)] = 19456
    argon2_iterations: Annotated[int, Field(ge=1, le=1000)] = 2


class AccessTokens(Section):
    """How long tokens are valid, and where a request may carry one."""

    lifetime_seconds: Count = 900
    refresh_lifetime_seconds: Count = 604800
    allow_in_query: bool = True


class Rooms(Section):
    """New rooms, and the public room directory."""

    default_version: RoomVersionName = "12"
    publish_to_directory: Literal["nobody", "admins", "members"] = "members"
    directory_over_federation: bool = True
    directory_without_auth: bool = False
    aliases_need_membership: bool = False
    default_rooms: Entries[RoomAliasText] = ()


class Federation(Section):
    """Which other servers we talk to, and how."""

    enabled: bool = True
    verify_certificates: bool = True
    trusted_ca_files: Entries[LocalPath] = ()
    allowed_ip_ranges: Entries[IpRange] = ()
    trusted_key_servers: Entries[ServerNameText] = ()
    well_known_server: ServerNameText | None = None
    allow_servers: Entries[ServerNameText] | None = None
    deny_servers: Entries[ServerNameText] = ()


class Outbound(Section):
    """All other calls that we make."""

    verify_certificates: bool = True
    allowed_ip_ranges: Entries[IpRange] = ()


class Media(Section):
    """Files that users send."""

    max_upload_bytes: Annotated[int, Field(ge=1)] = 104857600
    url_previews: bool = True


class Email(Section):
    """The mail server that takes our messages."""

    host: Host
    port: Port = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: Text = Field(alias="from")
    username: Text | None = None
    password: OptionalSecret = None


class RateLimit(Section):
    """How often one user or address may do something: `burst` at once, then `per_second`."""

    per_second: Rate
    burst: Count


class RateLimits(Section):
    """One limit for each kind of request; `enabled: false` lifts all of them."""

    enabled: bool = True
    message: RateLimit = RateLimit(per_second=10, burst=50)
    login: RateLimit = RateLimit(per_second=0.2, burst=5)
    registration: RateLimit = Field(alias="register", default=RateLimit(per_second=0.2, burst=3))
    join: RateLimit = RateLimit(per_second=1, burst=10)
    invite: RateLimit = RateLimit(per_second=0.3, burst=10)
    invited: RateLimit = RateLimit(per_second=0.02, burst=20)
    create_room: RateLimit = RateLimit(per_second=0.2, burst=5)
    profile: RateLimit = RateLimit(per_second=0.5, burst=10)
    directory: RateLimit = RateLimit(per_second=2, burst=20)
    lookup: RateLimit = RateLimit(per_second=10, burst=100)

    @model_validator(mode="before")
    @classmethod
    def _keep_the_other_number(cls, data: Any) -> Any:
        """A limit of which one number is given keeps the default of the other."""
        if not isinstance(data, dict):
            return data
        completed = dict(data)
        for name, info in cls.model_fields.items():
            given = completed.get(key := info.alias or name)
            if isinstance(given, dict) and isinstance(info.default, RateLimit):
                completed[key] = info.default.model_dump() | given
        return completed


class Cas(Section):
    """A CAS server at which users sign in."""

    server_url: WebUrl


class OidcProvider(Section):
    """An OpenID Connect provider at which users sign in."""

    id: Text
    name: Text
    issuer: WebUrl
    client_id: Text
    client_secret: SecretText
    scopes: Entries[Text] = ("openid", "profile")


class Sso(Section):
    """Single sign-on."""

    cas: Cas | None = None
    oidc: Entries[OidcProvider] = ()


class Presence(Section):
    """Who is online."""

    enabled: bool = True
    federate: bool = False


class Logging(Section):
    """What is logged, and how a line looks."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    format: Literal["text", "json"] = "text"


class Config(Section):
    """Every setting of a server."""

    server_name: ServerNameText = identifiers.ServerName("lair.localhost")
    data_dir: LocalPath = Path("data")
    signing_key_path: LocalPath | None = None
    public_base_url: WebUrl | None = None
    listeners: Entries[Listener] = (Listener(),)
    database: DatabaseConfig = DatabaseConfig()
    redis: RedisConfig = RedisConfig()
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    registration: Registration = Registration()
    passwords: Passwords = Passwords()
    access_tokens: AccessTokens = AccessTokens()
    rooms: Rooms = Rooms()
    federation: Federation = Federation()
    outbound: Outbound = Outbound()
    media: Media = Media()
    application_services: Entries[LocalPath] = ()
    email: Email | None = None
    rate_limits: RateLimits = RateLimits()
    sso: Sso = Sso()
    presence: Presence = Presence()
    logging: Logging = Logging()

    @field_validator("listeners")
    @classmethod
    def _listen_on_different_addresses(cls, listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
        if not listeners:
            raise bad_value("has no entry", "give at least one, or take the key out for the default")
        taken: set[tuple[str, int]] = set()
        for listener in listeners:
            address = (listener.bind, listener.port)
            if address in taken and listener.port:
                problem = f"two entries listen on {listener.bind}:{listener.port}"
                raise bad_value(problem, "give each its own port")
            taken.add(address)
        return listeners

    @model_validator(mode="after")
    def _default_rooms_are_ours(self) -> Config:
        for alias in self.rooms.default_rooms:
            if identifiers.server_name_of(alias) != self.server_name:
                raise bad_value(
                    f"{alias!r} belongs to another server",
                    f"let it end in :{self.server_name}",
                    key="rooms.default_rooms",
                )
        return self

    @property
    def signing_key_file(self) -> Path:
        """Where the signing key is: `signing_key_path`, by default in `data_dir`."""
        return self.signing_key_path or self.data_dir / "signing.key"


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The settings of a YAML file (None: the defaults) and of variables such as LAIR_DATABASE__POOL_SIZE.

    Raises ConfigErrors, whose text names for each error the key, what is wrong with its value, and a mend.
    """
    return read_settings(Config, path, environ, prefix=ENVIRONMENT_PREFIX)


def settings_without_effect(config: Config) -> list[str]:
    """The dotted paths of settings that differ from their default although nothing reads them yet."""
    defaults = dict(_leaves(Config()))
    return [
        key
        for key, value in _leaves(config)
        if value != defaults.get(key) and any(f"{key}.".startswith(f"{name}.") for name in NOT_BUILT)
    ]


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, info in type(section).model_fields.items():
        key, value = f"{prefix}{info.alias or name}", getattr(section, name)
        if isinstance(value, Section) and info.default is not None:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value
