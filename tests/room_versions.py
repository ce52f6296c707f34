"""The room versions that tests run in."""

from __future__ import annotations

from typing import Final

import pytest

from homeserver.protocol.room_versions import ROOM_VERSIONS

OF_EACH_FORM: Final = ("1", "3", "10", "11", "12")
"""One of each form that events and room IDs have had: chosen event IDs, event IDs that are not URL-safe,
creators in the create event, and the two of today."""

SINCE_V2: Final = OF_EACH_FORM[1:]
"""Those among them whose state resolution replays events."""

all_versions = pytest.mark.parametrize("version", list(ROOM_VERSIONS))
versions_since_v2 = pytest.mark.parametrize("version", SINCE_V2)
versions_with_restricted_joins = pytest.mark.parametrize("version", ["8", *OF_EACH_FORM[2:]])
versions_of_each_form = pytest.mark.parametrize("version", OF_EACH_FORM)
