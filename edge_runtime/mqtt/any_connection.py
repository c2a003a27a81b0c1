"""`AnyConnection`: the type of a link to one broker, or to the first reachable one of several.

`failover.py` is imported only if a device file names several brokers; type checkers always see it.
"""

from typing import TYPE_CHECKING

from edge_runtime.mqtt.connection import Connection

if TYPE_CHECKING:
    from edge_runtime.mqtt.failover import Failover

    AnyConnection = Connection | Failover
else:
    AnyConnection = Connection
