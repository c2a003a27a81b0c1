"""Predictions on demand, a status page and metrics. Imported only where `[http]` or `serve` asks for it.

::

    server.py ──> connections.py ──> app.py ──┬─> tensors.py   Open Inference Protocol v2
    address       waitress, epoll,   routes,  ├─> named.py     readings by name, answered as subscribers see them
    and limits    one thread         token,   ├─> metrics.py   Prometheus text
                                     errors   ├─> page.html    the status page
                                              └─> watching.py  its events
    over_mqtt.py ──> named.py     the same questions by MQTT 5, without a server
                     scorer.py    the models, one call for all that wait together
                     board.py     what the daemon shows: the only thing that both sides touch
                     courtesy.py  how those who answer give way to the event loop

No thread of this package touches an object of the event loop. What the loop shows, it puts on the board.
"""
