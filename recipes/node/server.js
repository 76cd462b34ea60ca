// Counts words in memory: what it was told before the snapshot it still knows after.
import express from "express";

const counts = new Map();
const app = express();

app.get("/healthz", (request, response) => response.type("text").send("ok\n"));

app.get("/words", (request, response) => response.json(Object.fromEntries(counts)));

app.get("/words/:word", (request, response) => {
  const { word } = request.params;
  response.json({ word, count: counts.get(word) ?? 0 });
});

app.post("/words", express.text(), (request, response) => {
  for (const word of request.body.match(/\p{Letter}+/gu) ?? []) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  response.status(201).json({ words: counts.size });
});

app.listen(3000, "127.0.0.1", () => console.log("listening on port 3000"));
