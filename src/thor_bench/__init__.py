"""The door of the ``thor`` command; nothing that takes time is imported before it stands open."""
