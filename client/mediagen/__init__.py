"""What callers install: the generated stubs (`mediagen.v1`), a small client and the `mediagen` command."""
