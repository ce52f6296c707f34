"""The services of accounts, built from the settings they need."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.config import Config
from homeserver.services.access_tokens import AccessTokens
from homeserver.services.accounts import Accounts, AfterDeactivation, nobody_waits
from homeserver.services.clock import Clock, system_clock
from homeserver.services.login import Login
from homeserver.services.own_account import OwnAccount
from homeserver.services.passwords import Passwords
from homeserver.services.registration import Registration
from homeserver.services.registration_tokens import RegistrationTokens
from homeserver.services.server_identity import establish_identity
from homeserver.services.sessions import DevicesRemoved, Sessions, nobody_cares
from homeserver.services.shared_secret_registration import SharedSecretRegistration
from homeserver.services.ui_auth_stages import (
    DUMMY,
    PASSWORD,
    REGISTRATION_TOKEN,
    DummyStage,
    PasswordStage,
    RegistrationTokenStage,
)
from homeserver.services.user_interactive_auth import UserInteractiveAuth
from storage.database import Database
from storage.dictionaries import Dictionary


@dataclass(frozen=True)
class AccountServices:
    """All services that deal with accounts and with who is asking."""

    access_tokens: AccessTokens
    sessions: Sessions
    accounts: Accounts
    registration_tokens: RegistrationTokens
    user_interactive_auth: UserInteractiveAuth
    registration: Registration
    shared_secret_registration: SharedSecretRegistration
    login: Login
    own_account: OwnAccount


async def build_account_services(
    config: Config,
    database: Database,
    atoms: Dictionary,
    *,
    clock: Clock = system_clock,
    devices_removed: DevicesRemoved = nobody_cares,
    after_deactivation: AfterDeactivation = nobody_waits,
) -> AccountServices:
    """Build the services on a migrated database, which gets its identity when it has none.

    Raises OtherServerName.
    """
    identity = await establish_identity(database, config.server_name)
    passwords = Passwords.with_costs(
        memory_kib=config.passwords.argon2_memory_kib, iterations=config.passwords.argon2_iterations
    )
    access_tokens = AccessTokens(database, identity.access_token_key, clock)
    sessions = Sessions(
        database,
        access_tokens,
        clock,
        config.access_tokens.lifetime_seconds * 1000,
        config.access_tokens.refresh_lifetime_seconds * 1000,
        devices_removed,
    )
    accounts = Accounts(database, atoms, passwords, sessions, clock, config.server_name, after_deactivation)
    registration_tokens = RegistrationTokens(database, clock)
    user_interactive_auth = UserInteractiveAuth(
        database,
        clock,
        {
            DUMMY: DummyStage(),
            REGISTRATION_TOKEN: RegistrationTokenStage(registration_tokens),
            PASSWORD: PasswordStage(accounts),
        },
    )
    return AccountServices(
        access_tokens,
        sessions,
        accounts,
        registration_tokens,
        user_interactive_auth,
        Registration(
            database,
            accounts,
            sessions,
            registration_tokens,
            user_interactive_auth,
            config.registration.enabled,
            config.registration.require_token,
            config.registration.guests,
        ),
        SharedSecretRegistration(database, accounts, sessions, clock, config.registration.shared_secret),
        Login(database, accounts, sessions),
        OwnAccount(database, accounts, user_interactive_auth),
    )
