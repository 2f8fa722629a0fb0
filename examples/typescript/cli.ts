// The client on the command line; README.md shows it at work.

import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { Relay, follow, hex, loadKeys, newKeys, unhex } from "./follow";

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    relay: { type: "string", default: "ws://127.0.0.1:8080" },
    key: { type: "string", default: "me.key" },
    to: { type: "string", default: "" },
    follow: { type: "boolean", default: false },
    "v1-ok": { type: "boolean", default: false },
  },
});
const [command, text = ""] = positionals;
const Socket = globalThis.WebSocket ?? (await import("ws")).default;

async function keys() {
  // "wx" writes only what is not there yet.
  await writeFile(given.key, newKeys(), { flag: "wx", mode: 0o600 }).catch(() => {});
  return loadKeys(await readFile(given.key, "utf8"));
}

if (command === "address") {
  console.log(hex((await keys()).address));
} else if (command === "receive" && given.follow) {
  await follow(given.relay, await keys(), console.log, console.error, Socket as typeof WebSocket);
} else if (command === "send" || command === "receive") {
  const relay = new Relay(given.relay, Socket);
  if (command === "send") await relay.send(text, unhex(given.to), given["v1-ok"]);
  else await relay.receive(await keys(), (text) => console.log(text));
  relay.socket.close();
} else {
  console.error("usage: node dist/cli.js address | receive [--follow] | send --to ADDRESS TEXT [--relay URL] [--key FILE]");
  process.exitCode = 2;
}
