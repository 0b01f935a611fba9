"""Files into pages, pages into records: a run over documents."""
