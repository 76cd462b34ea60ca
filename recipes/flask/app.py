"""Notes in SQLite, and a count in memory: both outlive the snapshot."""

import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

from flask import Flask, jsonify, render_template_string, request
from waitress import serve

DATA = Path("/var/lib/notes")
PAGE = """<!doctype html>
<title>Notes</title>
<h1>{{ notes | length }} notes</h1>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
<p>This page was shown {{ shown }} times.</p>
"""

app = Flask(__name__)
shown = count(1)


def database() -> closing[sqlite3.Connection]:
    """A connection of its own for each request: the server has several threads."""
    return closing(sqlite3.connect(DATA / "notes.db"))


@app.get("/healthz")
def healthz() -> str:
    return "ok\n"


@app.get("/")
def index() -> str:
    with database() as db:
        rows = db.execute("SELECT text FROM notes ORDER BY id").fetchall()
    return render_template_string(PAGE, notes=[text for (text,) in rows], shown=next(shown))


@app.get("/notes")
def notes():
    with database() as db:
        rows = db.execute("SELECT id, text FROM notes ORDER BY id").fetchall()
    return jsonify([{"id": number, "text": text} for number, text in rows])


@app.post("/notes")
def add():
    with database() as db, db:
        number = db.execute("INSERT INTO notes (text) VALUES (?)", (request.form["text"],)).lastrowid
    return jsonify({"id": number}), 201


if __name__ == "__main__":
    with database() as db:
        db.executescript((DATA / "schema.sql").read_text())
    serve(app, listen="127.0.0.1:8000", threads=4)
