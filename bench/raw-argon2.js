// What the same slots of argon2 can do with nothing around them: verifications a second.
import { availableParallelism } from 'node:os';
import argon2 from 'argon2';

const [seconds = '3'] = process.argv.slice(2);
const slots = Math.max(1, availableParallelism() - 1);
const hash = await argon2.hash('ck_live_token', {
  type: argon2.argon2id,
  memoryCost: 19456,
  timeCost: 2,
  parallelism: 1,
});
let verified = 0;
const startedAt = performance.now();
const endsAt = startedAt + Number(seconds) * 1000;
await Promise.all(
  Array.from({ length: slots }, async () => {
    while (performance.now() < endsAt) {
      await argon2.verify(hash, 'ck_live_token');
      verified++;
    }
  }),
);
process.stdout.write(
  JSON.stringify({ slots, perSecond: verified / ((performance.now() - startedAt) / 1000) }),
);
