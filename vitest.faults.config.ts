import { defineConfig } from 'vitest/config';

// Real instances under real faults: npm run test:faults. One file at a time, since each has the machine to itself.
export default defineConfig({
  test: {
    include: ['test/**/*.faults.ts'],
    fileParallelism: false,
    maxConcurrency: 2,
    testTimeout: 600_000,
    hookTimeout: 120_000,
    // What runs long tells how far it is.
    disableConsoleIntercept: true,
  },
});
