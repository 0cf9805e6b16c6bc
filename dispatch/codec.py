"""Payload and result values to bytes and back, proven; and what may be published at all.

What is stored is compact UTF-8 JSON. `encode` hands out no bytes that it has not
itself read back: it decodes them, turns the copy into JSON data once more and
compares that with what it wrote. Comparing JSON data and not the two values makes
the proof independent of the user's `__eq__`, which may leave fields out.

Reading trusts nothing: first the size, then JSON, then the declared class, whose
name never comes from the data. Whatever goes wrong there is one error,
InvalidQueuePayloadError, with a path and a bounded message. Fields whose attrs
metadata says `{"secret": True}` show as `***` in every message, as does whatever
a class with such a field said itself.
"""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from math import isfinite
from typing import Any, Final, NoReturn, TypeVar, cast
from uuid import UUID

import attrs
from cattrs import Converter
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError

from dispatch.admission import check_task
from dispatch.errors import (
    InvalidQueuePayloadError,
    InvalidTaskTypeError,
    UsageError,
    described,
)
from dispatch.records import UniqueKey
from dispatch.shapes import (
    Back,
    ClassFacts,
    Inside,
    Misfit,
    Out,
    ShapeBuilder,
    Unstorable,
    UnsupportedType,
    type_name,
)
from dispatch.tasks import QueueTask, TaskType
