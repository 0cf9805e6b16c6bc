"""Background work for trio services: typed queues, retries and cron, in process.

Start at `open_dispatcher`; declare work with `TaskType`; see `errors` for
everything that is raised, and `storage.protocol` for the persistence hook.
"""

from __future__ import annotations

from dispatch.clock import Clock
from dispatch.codec import Codec, Limits
from dispatch.consumer import ShutdownReport, TaskQueueConsumer
from dispatch.control import TaskPage, TaskQueueControl
from dispatch.cron.dispatcher import CronTaskDispatcher
from dispatch.cron.entries import CronEntry, CronTask
from dispatch.cron.policy import CronPolicy
from dispatch.cron.spec import CronSpec
from dispatch.dispatcher import Dispatcher, DispatcherOptions, EventStream, open_dispatcher
from dispatch.errors import (
    Cancel,
    ClaimLostError,
    ClosedError,
    CronNameConflictError,
    CronTaskNotFoundError,
    DispatchError,
    DuplicateTaskError,
    InternalError,
    InvalidConfigError,
    InvalidCronSpecError,
    InvalidQueueNameError,
    InvalidQueuePayloadError,
    InvalidQueueTaskError,
    InvalidTaskHandlerError,
    InvalidTaskTypeError,
    MissingExtraError,
    PermanentError,
    QueueConfigConflictError,
    QueueFullError,
    QueueInUseError,
    QueueNotRegisteredError,
    RetryAfter,
    Snooze,
    StorageError,
    TaskCancelledError,
    TaskFailedError,
    TaskHandlerNotFoundError,
    TaskNotFoundError,
)
from dispatch.events import EventKind, Observer, TaskEvent
from dispatch.handlers import Middleware, Next
from dispatch.pool import Task, TaskDispatcher
from dispatch.publisher import Published, TaskQueuePublisher
from dispatch.retry import RetryPolicy
from dispatch.run import Run
from dispatch.storage.memory import MemoryStorage
from dispatch.storage.protocol import Storage
from dispatch.storage.query import PruneSpec
from dispatch.tasks import (
    FailureReason,
    OnClash,
    Priority,
    Progress,
    QueueTask,
    RateLimit,
    TaskOptions,
    TaskQueueConfig,
    TaskStatus,
    TaskType,
    Unique,
)
from dispatch.waiting import WaitCause, Waiting, WaitReason

__all__ = [
    "Cancel",
    "ClaimLostError",
    "Clock",
    "ClosedError",
    "Codec",
    "CronEntry",
    "CronNameConflictError",
    "CronPolicy",
    "CronSpec",
    "CronTask",
    "CronTaskDispatcher",
    "CronTaskNotFoundError",
    "DispatchError",
    "Dispatcher",
    "DispatcherOptions",
    "DuplicateTaskError",
    "EventKind",
    "EventStream",
    "FailureReason",
    "InternalError",
    "InvalidConfigError",
    "InvalidCronSpecError",
    "InvalidQueueNameError",
    "InvalidQueuePayloadError",
    "InvalidQueueTaskError",
    "InvalidTaskHandlerError",
    "InvalidTaskTypeError",
    "Limits",
    "MemoryStorage",
    "Middleware",
    "MissingExtraError",
    "Next",
    "Observer",
    "OnClash",
    "PermanentError",
    "Priority",
    "Progress",
    "PruneSpec",
    "Published",
    "QueueConfigConflictError",
    "QueueFullError",
    "QueueInUseError",
    "QueueNotRegisteredError",
    "QueueTask",
    "RateLimit",
    "RetryAfter",
    "RetryPolicy",
    "Run",
    "ShutdownReport",
    "Snooze",
    "Storage",
    "StorageError",
    "Task",
    "TaskCancelledError",
    "TaskDispatcher",
    "TaskEvent",
    "TaskFailedError",
    "TaskHandlerNotFoundError",
    "TaskNotFoundError",
    "TaskOptions",
    "TaskPage",
    "TaskQueueConfig",
    "TaskQueueConsumer",
    "TaskQueueControl",
    "TaskQueuePublisher",
    "TaskStatus",
    "TaskType",
    "Unique",
    "WaitCause",
    "WaitReason",
    "Waiting",
    "open_dispatcher",
]
