"""The running daemon: plan, wiring (`assembly`), life (`process`), documents, and what outlives a start (`state`)."""
