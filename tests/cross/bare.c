/* A kernel on a machine without a system: no library, no start-up code of anyone. (Under qemu-user
 * the end is a system call; on a board it would be a loop.) */
#include "bare.h"

static float x[2 * 4 * 3], gamma[4], beta[4], mean[4], variance[4], y[2 * 4 * 3];

static void end(long status) {
  register long x0 __asm__("x0") = status;
  register long x8 __asm__("x8") = 93; /* exit */
  __asm__ volatile("svc 0" : : "r"(x0), "r"(x8) : "memory");
  for (;;)
    ;
}

void _start(void) {
  for (int i = 0; i < 2 * 4 * 3; ++i)
    x[i] = (float)(i % 7) - 3;
  for (int c = 0; c < 4; ++c) {
    gamma[c] = 2;
    beta[c] = (float)c;
    mean[c] = 0.5f;
    variance[c] = 4; /* and epsilon 0.0001 */
  }
  if (bare_inference(x, gamma, beta, mean, variance, y, 2, 0) != 0)
    end(2);
  for (int i = 0; i < 2 * 4 * 3; ++i) {
    const float want = (x[i] - 0.5f) / 2.000025f * 2 + (float)(i / 3 % 4);
    const float relu = want < 0 ? 0 : want;
    const float difference = y[i] - relu;
    if (!(difference < 1e-5f && difference > -1e-5f))
      end(1);
  }
  end(0);
}
