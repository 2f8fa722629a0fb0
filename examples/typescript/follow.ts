// Receives for as long as it is asked to: reconnects when the relay goes away or the connection breaks.

import { Relay, type Keys } from "./client";

export * from "./client";

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 60_000;

/** Shows texts as they come, and tells why a connection ended. Ends only with an error that reconnecting cannot fix. */
export async function follow(
  url: string,
  keys: Keys,
  show: (text: string) => unknown,
  tell: (news: string) => unknown,
  Socket = globalThis.WebSocket,
): Promise<never> {
  let wait = FIRST_WAIT_MS;
  const forgetWait = (text: string) => ((wait = FIRST_WAIT_MS), show(text));
  for (;;) {
    const relay = new Relay(url, Socket);
    try {
      // The relay draws this time for each client, so that not all come back at once.
      const asked = await relay.receive(keys, forgetWait, true);
      tell(`the relay is about to stop; reconnecting in ${seconds(asked)}`);
      await pause(asked);
    } catch (error) {
      // Only a lost connection can be better next time.
      if (relay.socket.readyState !== Socket.CLOSED) throw error;
      tell(`${(error as Error).message}; reconnecting in ${seconds(wait)}`);
      await pause(wait * (0.5 + Math.random()));
      wait = Math.min(2 * wait, LONGEST_WAIT_MS);
    } finally {
      relay.socket.close();
    }
  }
}

const pause = (ms: number) => new Promise((next) => setTimeout(next, ms));
const seconds = (ms: number) => `${Math.ceil(ms / 1_000)} s`;
