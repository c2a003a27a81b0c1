"""`AnyConnection`: the type of a link to one broker, or to the first reachable one of several.

`failover.py` is imported only where a device file names several brokers; for type checkers it is always there.
"""

from typing import TYPE_CHECKING

from edge_runtime.mqtt.connection import Connection

if TYPE_CHECKING:
    from edge_runtime.mqtt.failover import Failover

    AnyConnection = Connection | Failover
else:
    AnyConnection = Connection
