// Node-RED without editor or pages: only the flow runs. The model is handed to function nodes as its manual says.
const ort = require("onnxruntime-node");

module.exports = {
  flowFile: "flows.json",
  credentialSecret: false,
  disableEditor: true,
  httpAdminRoot: false,
  httpNodeRoot: false,
  uiHost: "127.0.0.1",
  uiPort: Number(process.env.BENCH_UI_PORT),
  telemetry: { enabled: false, updateNotification: false },
  logging: { console: { level: "warn", metrics: false, audit: false } },
  functionGlobalContext: {
    ort,
    Float32Array, // a function node's own one is of another realm, and the library refuses it
    session: ort.InferenceSession.create(process.env.BENCH_MODEL, { intraOpNumThreads: 1 }),
  },
};
