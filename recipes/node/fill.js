// What the server knows when the machine is frozen, and a first request of each kind.
const server = "http://127.0.0.1:3000";

async function ask(path, options) {
  const response = await fetch(server + path, options);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

const body = "to be or not to be";
await ask("/words", { method: "POST", body, headers: { "Content-Type": "text/plain" } });
console.log(await ask("/words"));
