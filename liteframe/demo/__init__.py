"""The whole road in toyworld, from rendered videos to an exported model that answers."""
