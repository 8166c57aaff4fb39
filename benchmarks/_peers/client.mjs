// client.py for undici. The argument is the URL.

import { Pool } from "undici";

const CONNECTIONS = 4;
const BODY = "x".repeat(1000);
const PATIENCE = 30000; // ms for a response
const READY = 20; // responses

const url = new URL(process.argv[2]);
const pool = new Pool(url.origin, { connections: CONNECTIONS, headersTimeout: PATIENCE, bodyTimeout: PATIENCE });
let answered = 0;
const lost = [];

async function run() {
  for (let own = 0; ; ) {
    try {
      const response = await pool.request({ path: url.pathname, method: "POST", body: BODY });
      const text = await response.body.text();
      if (response.statusCode !== 200 || text !== `${BODY.length}`) {
        lost.push(`status ${response.statusCode}, ${text.slice(0, 80)}`);
        continue;
      }
      answered += 1;
      own += 1;
      if (own === READY) process.stdout.write("ready\n");
    } catch (error) {
      if (error.syscall === "connect" || error.code === "UND_ERR_CONNECT_TIMEOUT") return;
      lost.push(`${error.code}: ${error.message}`);
    }
  }
}

setTimeout(() => process.exit(1), 120000).unref(); // it does not outlive a server that hangs
await Promise.all(Array.from({ length: CONNECTIONS }, run));
process.stdout.write(`${JSON.stringify({ answered, lost })}\n`, () => process.exit());
