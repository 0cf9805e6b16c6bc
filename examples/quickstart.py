import sys
import trio
from attrs import frozen
from dispatch import QueueTask, TaskQueueConfig, TaskType, open_dispatcher

@frozen
class Welcome:
    to: str

WELCOME = TaskType("email", "welcome", Welcome)

async def send_welcome(task: QueueTask[Welcome]) -> None:
    print(f"welcome {task.payload.to}, attempt {task.attempt}")
    if task.payload.to.startswith("bob") and task.attempt == 1:
        raise ConnectionError("the mail server is busy")

async def main() -> None:
    async with open_dispatcher(*sys.argv[1:]) as dispatcher:  # no argument: in memory
        dispatcher.consumer.register_queue("email", TaskQueueConfig(max_retry=5, retry_delay=0.2))
        dispatcher.consumer.register_handler(WELCOME, send_welcome)
        await dispatcher.publisher.publish(WELCOME(Welcome("ada@example.org")))
        await dispatcher.publisher.publish(WELCOME(Welcome("bob@example.org")))
        await dispatcher.drain()
        print("all done")

trio.run(main)
