const ort = global.get("ort");
const values = global.get("Float32Array").from([
  msg.payload.accel_x, msg.payload.accel_y, msg.payload.accel_z,
  msg.payload.gyro_x, msg.payload.gyro_y, msg.payload.gyro_z,
]);
const session = await global.get("session");
const out = await session.run({ window: new ort.Tensor("float32", values, [1, 1, 6]) });
const labels = ["ok", "loose", "worn"];
const label = Number(out.label.data[0]);
const scores = {};
labels.forEach((name, i) => { scores[name] = out.scores.data[i]; });
return { payload: { time: Date.now() / 1000, label: labels[label], score: out.scores.data[label], scores } };
