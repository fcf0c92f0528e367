// A client that shares nothing with this project, on the package `ws`: what it does is what the TypeScript library's client does.
// Usage: node client.js ws://127.0.0.1:8080, with a server that pings every 50 ms or so. Exits 0 if all went as promised.
'use strict';

const assert = require('node:assert/strict');
const WebSocket = require('ws');

const fail = (error) => {
  console.error(error);
  process.exit(1);
};
process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);
setTimeout(fail, 10_000, new Error('not within 10 s'));

const socket = new WebSocket(process.argv[2]);
const replies = new Map();
const events = [];
let waiting = null;
let pings = 0;
let latency = null;

// Ids are 16 bits wide and begin anew after the last one.
let lastId = 65_533;
const nextId = () => (lastId = (lastId + 1) & 0xffff);

const send = (command, payload = {}) => {
  const id = nextId();
  socket.send(JSON.stringify({ id, command, payload }));
  return id;
};

const call = (command, payload) =>
  new Promise((resolve) => replies.set(send(command, payload), { command, resolve }));

const event = () =>
  new Promise((resolve) => (events.length > 0 ? resolve(events.shift()) : (waiting = resolve)));

socket.on('message', (data, isBinary) => {
  assert.equal(isBinary, false);
  const frame = JSON.parse(data);
  if (frame.id !== undefined) {
    // A reply to a pong would end up here.
    const pending = replies.get(frame.id);
    assert.ok(pending, `nobody waits for ${data}`);
    assert.equal(frame.command, pending.command);
    replies.delete(frame.id);
    return pending.resolve(frame.payload);
  }
  switch (frame.command) {
    case 'ping':
      assert.deepEqual(frame.payload, {});
      pings += 1;
      return send('pong');
    case 'latency:request':
      return send('latency:response');
    case 'latency':
      latency = frame.payload;
      return undefined;
  }
  if (waiting === null) return events.push(frame);
  waiting(frame);
  waiting = null;
});

let leaving = false;
const closed = new Promise((resolve) =>
  socket.on('close', (code) => (leaving ? resolve(code) : fail(new Error(`closed: ${code}`)))),
);

(async () => {
  const assigned = await event();
  assert.equal(assigned.command, 'mesh/assign-id');
  const { connectionId } = await call('whoami');
  assert.equal(assigned.payload, connectionId);

  assert.equal(await call('echo', 'Grüße 🦀'), 'echo: Grüße 🦀');
  assert.equal(await call('echo'), 'echo: {}');
  assert.ok(lastId < 65_533, 'ids did not begin anew');
  const many = Array.from({ length: 100 }, (_, n) => n);
  assert.deepEqual(await Promise.all(many.map((n) => call('reflect', n))), many);

  const failed = await call('this-command-throws');
  assert.deepEqual(failed, { error: 'Something went wrong', code: 'ESERVER', name: 'Error' });
  const unknown = await call('no-such-command');
  assert.deepEqual(unknown, {
    error: 'Command "no-such-command" not found',
    code: 'ENOTFOUND',
    name: 'CommandError',
  });

  const channel = 'chat:foreign';
  for (const message of ['1', '2', '3']) {
    await call('publish', { channel, message, history: 10 });
  }
  const subscribed = await call('mesh/subscribe-channel', { channel, historyLimit: 2 });
  assert.deepEqual(subscribed, { success: true, history: ['3', '2'] });
  await call('publish', { channel, message: '{"n": 4}', history: 10 });
  assert.deepEqual(await event(), {
    command: 'mesh/subscription-message',
    payload: { channel, message: '{"n": 4}' },
  });
  assert.equal(await call('mesh/unsubscribe-channel', { channel }), true);

  const recordId = 'cursor:foreign';
  const text = 'long enough for a patch to be shorter';
  const update = (newValue, strategy) =>
    call('mesh/publish-record-update', { recordId, newValue, options: { strategy } });
  const snapshot = await call('mesh/subscribe-record', { recordId, mode: 'patch' });
  assert.deepEqual(snapshot, { success: true, record: null, version: 0 });
  assert.deepEqual(await update({ text, x: 1 }, 'replace'), { success: true });
  assert.deepEqual(await event(), {
    command: 'mesh/record-update',
    payload: { recordId, full: { text, x: 1 }, version: 1 },
  });
  assert.deepEqual(await update({ x: 2 }, 'merge'), { success: true });
  assert.deepEqual(await event(), {
    command: 'mesh/record-update',
    payload: { recordId, patch: [{ op: 'replace', path: '/x', value: 2 }], version: 2 },
  });
  assert.deepEqual(await call('delete-record', { recordId }), { success: true });
  assert.deepEqual(await event(), {
    command: 'mesh/record-deleted',
    payload: { recordId, version: 3 },
  });
  assert.equal(await call('mesh/unsubscribe-record', { recordId }), true);
  const refused = await call('mesh/subscribe-record', { recordId: 'secret:foreign' });
  assert.deepEqual(refused, { success: false });

  // More pings than the server would forgive, had the pongs not counted.
  while (pings < 6 || latency === null) await call('mesh/noop');
  assert.equal(typeof latency, 'number');

  assert.equal(events.length, 0);
  leaving = true;
  socket.close(1000);
  assert.equal(await closed, 1000);
  process.exit(0);
})();
