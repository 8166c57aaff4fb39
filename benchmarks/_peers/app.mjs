// The Express application that peers.py stops: the work of app.py, with the peer that PEERS names, configured as
// its README shows. The first argument is the port, the second that of Lightship's probes.

import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import express from "express";

const GRACE = 19000; // ms; peers.py allows twenty seconds
const LARGE = Buffer.alloc(8 << 20, "x");
const [port, probePort] = process.argv.slice(2).map(Number);
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

const app = express();
app.get("/fast", (request, response) => response.send("fast"));
app.get("/slow", async (request, response) => {
  await pause(request.query.s);
  response.send("slow");
});
app.get("/stream", async (request, response) => {
  for (let number = 0; number < 10; number += 1) {
    response.write(`part ${number}\n`);
    await pause(request.query.s / 10);
  }
  response.end();
});
app.post("/upload", express.raw({ type: () => true }), (request, response) => response.send(`${request.body.length}`));
app.get("/large", (request, response) => response.send(LARGE));
const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), "peers-")), "large");
fs.writeFileSync(file, LARGE);
app.get("/file", (request, response) => response.type("text/plain").sendFile(file));

const server = http.createServer(app);
const listen = (listening) => server.listen(port, "127.0.0.1", listening);

const peers = {
  async express() {
    app.get("/ready", (request, response) => response.send("ok"));
    app.get("/live", (request, response) => response.send("ok"));
    listen();
  },
  async "close-with-grace"() {
    const { default: closeWithGrace } = await import("close-with-grace");
    app.get("/ready", (request, response) => response.send("ok"));
    app.get("/live", (request, response) => response.send("ok"));
    closeWithGrace({ delay: GRACE }, () => new Promise((resolve) => server.close(resolve)));
    listen();
  },
  async terminus() {
    const { createTerminus } = await import("@godaddy/terminus");
    createTerminus(server, {
      healthChecks: {
        "/ready": async ({ state }) => {
          if (state.isShuttingDown) throw new Error("shutting down");
        },
        "/live": async () => undefined,
      },
      sendFailuresDuringShutdown: false, // the checks decide, so that liveness does not fail
      timeout: GRACE,
      useExit0: true,
    });
    listen();
  },
  async lightship() {
    const { createLightship } = await import("lightship");
    const lightship = await createLightship({
      port: probePort,
      detectKubernetes: false, // with true, its port is random outside Kubernetes
      shutdownDelay: 0,
      gracefulShutdownTimeout: GRACE,
      shutdownHandlerTimeout: GRACE,
    });
    lightship.registerShutdownHandler(() => new Promise((resolve) => server.close(resolve)));
    listen(() => lightship.signalReady());
  },
};
await peers[process.env.PEERS]();
