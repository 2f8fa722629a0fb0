// Sends and receives end-to-end encrypted texts through a relay, over its native protocol (v2), in browsers and in Node.

import { create, fromBinary, toBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { ClientFrameSchema, ServerFrameSchema, type Delivery, type ServerFrame, type Welcome } from "./relay_pb";

type Bytes = Uint8Array<ArrayBuffer>;
type Request = NonNullable<MessageInitShape<typeof ClientFrameSchema>["frame"]>;

export const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
export const unhex = (text: string): Bytes => Uint8Array.from(text.match(/../g) ?? [], (byte) => parseInt(byte, 16));
const join = (...parts: Uint8Array[]): Bytes => Uint8Array.from(parts.flatMap((part) => Array.from(part)));
const utf8 = (text: string): Bytes => join(new TextEncoder().encode(text));
const random = (length: number): Bytes => crypto.getRandomValues(new Uint8Array(length));
const sha256 = async (bytes: Bytes): Promise<Bytes> => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));

/** A device's private keys: `sign` opens its mailbox, `open` decrypts its texts. */
export type Keys = { sign: CryptoKey; open: CryptoKey; mailbox: Bytes; address: Bytes };

export const newKeys = (): string => hex(random(64));
export async function loadKeys(text: string): Promise<Keys> {
  const seeds = unhex(text.trim());
  const [sign, mailbox] = await privateKey("Ed25519", "70", seeds.slice(0, 32), ["sign"]);
  const [open, sealing] = await privateKey("X25519", "6e", seeds.slice(32), ["deriveBits"]);
  // Others need the address to write to us: the mailbox, and the public key to encrypt for.
  return { sign, open, mailbox, address: join(mailbox, sealing) };
}

/** WebCrypto takes private keys in PKCS #8 only: a fixed head (RFC 8410), then the seed. Its JWK has the public key. */
async function privateKey(name: string, kind: string, seed: Bytes, uses: KeyUsage[]): Promise<[CryptoKey, Bytes]> {
  const encoded = join(unhex(`302e020100300506032b65${kind}04220420`), seed);
  const key = await crypto.subtle.importKey("pkcs8", encoded, name, true, uses);
  const { x = "" } = await crypto.subtle.exportKey("jwk", key);
  return [key, Uint8Array.from(atob(x.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0))];
}

/** The key of one text. `sender` is made for this text only, so the key never returns, and its nonce may be 0. */
async function textKey(ours: CryptoKey, theirs: Bytes, sender: Bytes, address: Bytes): Promise<CryptoKey> {
  const peer = await crypto.subtle.importKey("raw", theirs, "X25519", true, []);
  const shared = await crypto.subtle.deriveBits({ name: "X25519", public: peer }, ours, 256);
  const ikm = await crypto.subtle.importKey("raw", shared, "HKDF", false, ["deriveKey"]);
  const info = join(utf8("vauchi-relay example text"), sender, address);
  const hkdf = { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(0), info };
  return crypto.subtle.deriveKey(hkdf, ikm, { name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
}
const NONCE = { name: "AES-GCM", iv: new Uint8Array(12) };

export async function seal(text: string, address: Bytes): Promise<Bytes> {
  const once = (await crypto.subtle.generateKey("X25519", true, ["deriveBits"])) as CryptoKeyPair;
  const sender = new Uint8Array(await crypto.subtle.exportKey("raw", once.publicKey));
  const key = await textKey(once.privateKey, address.slice(32), sender, address);
  return join(sender, new Uint8Array(await crypto.subtle.encrypt(NONCE, key, utf8(text))));
}

export async function unseal(blob: Bytes, keys: Keys): Promise<string> {
  const sender = blob.slice(0, 32);
  const key = await textKey(keys.open, sender, sender, keys.address);
  return new TextDecoder().decode(await crypto.subtle.decrypt(NONCE, key, blob.slice(32)));
}

/** A connection to a relay. */
export class Relay {
  readonly socket: WebSocket;
  private origin: string;
  private requests = 0;
  private waiting = new Map<number, (frame: ServerFrame) => void>();
  private pushed: ServerFrame[] = [];
  private wake = () => {};
  private end = "";

  /** `Socket` is for Node before 22, which has no WebSocket of its own. */
  constructor(url: string, Socket = globalThis.WebSocket) {
    this.socket = new Socket(url.split("#")[0]!, "vauchi.relay.v2");
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.take(fromBinary(ServerFrameSchema, new Uint8Array(data)));
    this.socket.onclose = ({ code, reason }) => {
      this.end = `the connection has ended: ${code} ${reason}`;
      this.waiting.forEach((_, answers) => this.take(create(ServerFrameSchema, { answers })));
      this.wake();
    };
    this.socket.onerror = () => {}; // onclose follows.
    // The host that we dialled, in the form that signatures need.
    const { host, hash } = new URL(url.replace(/^ws/, "http"));
    this.origin = host.replace(/:(80|443)$/, "");
    this.welcome = this.introduced(hash.slice(1));
    this.welcome.catch(() => {}); // Those that wait for it are told.
  }
  private welcome: Promise<Welcome>;

  /** Anyone can claim an id, so the relay signs for this connection and host before we send anything else. */
  private async introduced(pinned: string): Promise<Welcome> {
    await this.push();
    const nonce = random(32);
    const answer = await this.ask({ case: "hello", value: { nonce, origin: this.origin } });
    const welcome = answer.frame.value as Welcome;
    const id = join(welcome.relayId);
    const key = await crypto.subtle.importKey("raw", id, "Ed25519", false, ["verify"]);
    const signed = await this.signed("welcome", id, nonce, welcome.challenge);
    if (!(await crypto.subtle.verify("Ed25519", key, join(welcome.proof), signed))) throw new Error("a false relay");
    // Without an id behind the URL, a client should remember this one, and later accept no other from this host.
    if (pinned && pinned !== hex(id)) throw new Error(`this is another relay: its id is ${hex(id)}`);
    return welcome;
  }
  private signed = async (words: string, ...[id, ...numbers]: Uint8Array[]) =>
    join(utf8(`vauchi.relay.v2 ${words}`), id!, ...numbers, await sha256(utf8(this.origin)));

  async send(text: string, address: Bytes, v1Ok = false): Promise<void> {
    await this.welcome;
    const mailbox = address.slice(0, 32);
    // A client that keeps this secret can take the blob back later (Cancel).
    const extendKey = await sha256(join(utf8("vauchi.relay.v2 extend"), random(32)));
    const id = (await sha256(join(utf8("vauchi.relay.v2 blob"), mailbox, extendKey))).slice(0, 16);
    // After a lost connection, the same submit can be sent again: the relay stores it once.
    await this.ask({ case: "submit", value: { id, mailbox, v1Ok, blob: await seal(text, address) } });
  }

  /** Shows what waits; with `follow` also new texts, until the relay goes away: returns how many ms to stay away. */
  async receive(keys: Keys, show: (text: string) => unknown, follow = false): Promise<number> {
    const { relayId, challenge } = await this.welcome;
    const signed = join(await this.signed("subscribe", relayId, challenge), keys.mailbox);
    const signature = new Uint8Array(await crypto.subtle.sign("Ed25519", keys.sign, signed));
    const openings = [{ mailbox: keys.mailbox, signature }];
    const { frame } = await this.ask({ case: "subscribe", value: { origin: this.origin, openings } });
    if (frame.case === "subscribed" && frame.value.openings[0]?.code)
      throw new Error("the relay refuses to open the mailbox");
    for (;;) {
      const { frame } = await this.push();
      if (frame.case === "delivery") await this.deliver(frame.value, keys, show);
      else if (frame.case === "goAway") return Number(frame.value.reconnectAfterMs);
      else if (frame.case === "caughtUp" && !follow) return 0;
    }
  }

  private async deliver({ mailbox, id, blob }: Delivery, keys: Keys, show: (text: string) => unknown): Promise<void> {
    const text = await unseal(join(blob), keys).catch(() => `(a blob of ${blob.length} bytes that is not for us)`);
    await show(text);
    // Acknowledge only after saving the text: the relay deletes it. Acknowledge blobs that we cannot use, too.
    await this.ask({ case: "acknowledge", value: { items: [{ mailbox, id }] } });
  }

  /** Sends a request and waits for its answer. */
  private async ask(frame: Request): Promise<ServerFrame> {
    if (this.end) throw new Error(this.end);
    const request = ++this.requests;
    const answer = await new Promise<ServerFrame>((resolve) => {
      this.waiting.set(request, resolve);
      this.socket.send(join(toBinary(ClientFrameSchema, create(ClientFrameSchema, { request, frame }))));
    });
    this.waiting.delete(request);
    if (answer.frame.case === "refused") throw new Error(`refused: ${answer.frame.value.message}`);
    if (answer.frame.case === undefined) throw new Error(this.end || "an answer that this client does not know");
    return answer;
  }

  /** Waits for the next push, a frame that no request asked for. */
  private async push(): Promise<ServerFrame> {
    for (;;) {
      if (this.pushed[0]) return this.pushed.shift()!;
      if (this.end) throw new Error(this.end);
      await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }

  private take(frame: ServerFrame): void {
    this.waiting.get(frame.answers)?.(frame);
    if (!frame.answers) this.pushed.push(frame);
    this.wake();
  }
}
