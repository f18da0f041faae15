"""The command line: it parses, calls the engine and shows what comes back. No mathematics here."""
