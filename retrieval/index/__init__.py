"""Place indexes: what a published version is, and every engine that can hold and search one."""
