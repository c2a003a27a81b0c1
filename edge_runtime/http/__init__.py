"""Predictions on demand, a status page and metrics. Imported only where `[http]` or `serve` asks for it.

::

    server.py ──> app.py ──┬─> tensors.py   Open Inference Protocol v2
    waitress      routes,  ├─> named.py     readings by name, answered as subscribers see them
    and limits    token,   ├─> metrics.py   Prometheus text
                  errors   ├─> page.html    the status page
                           └─> board.py     what the daemon shows: the only thing that both sides touch
    over_mqtt.py ──> named.py             the same questions by MQTT 5, without a server
                  scorer.py: the models, one call at a time for all requests

No thread of this package touches an object of the event loop. What the loop shows, it puts on the board.
"""
