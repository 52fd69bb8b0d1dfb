"""Raw slides of every maker: detection and reading."""
