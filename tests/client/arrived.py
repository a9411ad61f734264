"""A message as it arrives at a node."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata


def arrived(run_id: int, message_type: str) -> Message:
    """From the coordinator to node 5; it has no id yet."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=1,
        dst_node_id=5,
        reply_to_message_id="",
        group_id="",
        created_at=1.0,
        ttl=60.0,
        message_type=message_type,
    )
    return Message(metadata=metadata, content=RecordDict())  # type: ignore[call-overload]  # Flower's own way, which its types leave out
